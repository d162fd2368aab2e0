// The rule: a user's contacts get more of the metadata than others do.

/** The metadata keys that viewers get. */
export interface Config {
  contacts: string[];
  others: string[];
}

/** Reads a configuration. What is wrong with it is thrown as an Error. */
export function parse(json: string): Config {
  const given = JSON.parse(json);
  const config: Config = { contacts: ["device", "location"], others: ["device"] };
  for (const [key, value] of Object.entries(given)) {
    if (key !== "contacts" && key !== "others") throw new Error(`unknown key \`${key}\``);
    if (!isKeys(value)) throw new Error(`\`${key}\` must be a list of strings`);
    config[key] = value;
  }
  return config;
}

function isKeys(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((key) => typeof key === "string");
}
