// A filter: what the host calls. The rule itself is in rule.ts.
import { intersection, type Audience } from "presence:plugin/audiences@0.2.0";
import { contacts } from "presence:plugin/directory@0.2.0";
import { get, type Event } from "presence:plugin/events@0.2.0";
import { explain } from "presence:plugin/host@0.2.0";
import { isQuiet, parse, type Config } from "./rule";

let config: Config;

export function configure(json: string): void {
  try {
    config = parse(json);
  } catch (error) {
    // A thrown text refuses the configuration; an Error would be a failure.
    throw `configuration: ${(error as Error).message}`;
  }
}

export function filter(event: Event, audience: Audience): Audience {
  const status = get("status");
  if (!isQuiet(config, status?.tag === "text" ? status.val : undefined)) {
    return audience;
  }
  explain("the user is quiet: only contacts may see them");
  return intersection(audience, contacts(event.user));
}
