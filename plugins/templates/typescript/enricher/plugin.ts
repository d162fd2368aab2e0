// An enricher: what the host calls. The rule itself is in rule.ts.
import { get, type Change, type Event } from "presence:plugin/events@0.2.0";
import { kind, parse, type Config } from "./rule";

let config: Config;

export function configure(json: string): void {
  try {
    config = parse(json);
  } catch (error) {
    // A thrown text refuses the configuration; an Error would be a failure.
    throw `configuration: ${(error as Error).message}`;
  }
}

export function enrich(_event: Event): Change[] {
  const userAgent = get("userAgent");
  if (userAgent?.tag !== "text") return [];
  return [{ key: config.into, value: { tag: "text", val: kind(userAgent.val) } }];
}
