// A redactor: what the host calls. The configuration is in rule.ts.
import { difference, intersection, type Audience } from "presence:plugin/audiences@0.2.0";
import { contacts } from "presence:plugin/directory@0.2.0";
import type { Event } from "presence:plugin/events@0.2.0";
import { parse, type Config } from "./rule";

/** What a part of the audience gets to see. */
interface Rendition {
  audience: Audience;
  /** The metadata keys. */
  keys: string[];
  /** Whether these viewers get to know when the user was last seen. */
  lastSeen: boolean;
}

let config: Config;

export function configure(json: string): void {
  try {
    config = parse(json);
  } catch (error) {
    // A thrown text refuses the configuration; an Error would be a failure.
    throw `configuration: ${(error as Error).message}`;
  }
}

export function redact(event: Event, audience: Audience): Rendition[] {
  const friends = intersection(audience, contacts(event.user));
  const others = difference(audience, friends);
  return [
    { audience: friends, keys: config.contacts, lastSeen: true },
    { audience: others, keys: config.others, lastSeen: false },
  ];
}
