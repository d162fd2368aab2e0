// The rule: what kind of client a user has, as the user agent tells.

export interface Config {
  /** The metadata key that the kind goes to. */
  into: string;
}

/** Reads a configuration. What is wrong with it is thrown as an Error. */
export function parse(json: string): Config {
  const given = JSON.parse(json);
  const config: Config = { into: "client" };
  for (const [key, value] of Object.entries(given)) {
    if (key !== "into") throw new Error(`unknown key \`${key}\``);
    if (typeof value !== "string") throw new Error("`into` must be a string");
    config.into = value;
  }
  return config;
}

/** Browsers of phones and tablets have "Mobi" in their user agent. */
export function kind(userAgent: string): "mobile" | "desktop" {
  return userAgent.includes("Mobi") ? "mobile" : "desktop";
}
