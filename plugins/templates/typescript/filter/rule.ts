// The rule: while a user is quiet, only their contacts may see them.

export interface Config {
  /** The `status` in a user's metadata that means quiet. */
  status: string;
}

/** Reads a configuration. What is wrong with it is thrown as an Error. */
export function parse(json: string): Config {
  const given = JSON.parse(json);
  const config: Config = { status: "quiet" };
  for (const [key, value] of Object.entries(given)) {
    if (key !== "status") throw new Error(`unknown key \`${key}\``);
    if (typeof value !== "string") throw new Error("`status` must be a string");
    config.status = value;
  }
  return config;
}

/** Whether only contacts may see a user with this status. */
export function isQuiet(config: Config, status: string | undefined): boolean {
  return status === config.status;
}
