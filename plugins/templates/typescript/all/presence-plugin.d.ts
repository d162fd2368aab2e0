// All that a plugin can ask, as wit/0.2.0/presence.wit says it in full.

declare module "presence:plugin/events@0.2.0" {
  /** What happened to the user. */
  export type Kind = "online" | "offline";
  /** Why a user went offline. */
  export type OfflineReason = "disconnect" | "timeout" | "logout";
  /** The event a call is about. */
  export interface Event {
    kind: Kind;
    /** The id of the user whose presence changed. */
    user: string;
  }
  /** A metadata value: a JSON string, unescaped, or any other value as JSON text. */
  export type Value = { tag: "text"; val: string } | { tag: "json"; val: string };
  /** The value to put under a key of the metadata, or none to remove it. */
  export interface Change {
    key: string;
    value?: Value;
  }

  /** The event's timestamp, in milliseconds since the Unix epoch. */
  export function timestamp(): bigint;
  /** When the user was last seen. Undefined while the user is online. */
  export function lastSeen(): bigint | undefined;
  /** Why the user went offline. Undefined while the user is online. */
  export function reason(): OfflineReason | undefined;
  /** The metadata value under a key. */
  export function get(key: string): Value | undefined;
  /** All metadata. After `get` of one key a verdict can be reused more often. */
  export function entries(): [string, Value][];
}

declare module "presence:plugin/audiences@0.2.0" {
  /** A set of viewers, held by the host. It is good for the call it was made in. */
  export type Audience = number;

  /** The empty audience. */
  export function nobody(): Audience;
  /** The audience of exactly these users. */
  export function of(users: string[]): Audience;
  /** Everyone in either. */
  export function union(a: Audience, b: Audience): Audience;
  /** Everyone in both. */
  export function intersection(a: Audience, b: Audience): Audience;
  /** Everyone in `a` who is not in `b`. */
  export function difference(a: Audience, b: Audience): Audience;
  /** Whether a user is in an audience. */
  export function contains(a: Audience, user: string): boolean;
  /** How many users are in an audience. */
  export function len(a: Audience): number;
  /** Everyone in an audience: the costly way out. */
  export function viewers(a: Audience): string[];
}

declare module "presence:plugin/directory@0.2.0" {
  import type { Audience } from "presence:plugin/audiences@0.2.0";

  /** A user's contacts. */
  export function contacts(user: string): Audience;
  /** Everyone who has this user among their contacts. */
  export function withContact(user: string): Audience;
  /** The members of a group. */
  export function members(group: string): Audience;
  /** Everyone who shares a group with this user. */
  export function coMembers(user: string): Audience;
  /** Everyone this user has blocked. */
  export function blockedBy(user: string): Audience;
  /** Everyone who has blocked this user. */
  export function blockers(user: string): Audience;
  /** Everyone whom the directory knows. */
  export function everyone(): Audience;
  /** The names of the groups a user is in. */
  export function groups(user: string): string[];
  /** A user's setting, as JSON text. */
  export function setting(user: string, key: string): string | undefined;
  /** Everyone whose setting under this key has this value, given as JSON text. */
  export function withSetting(key: string, value: string): Audience;
}

declare module "presence:plugin/host@0.2.0" {
  import type { Audience } from "presence:plugin/audiences@0.2.0";

  export type Level = "error" | "warn" | "info" | "debug";
  /** A date and a time of the day, as the clocks of a time zone show them. */
  export interface ClockTime {
    year: number;
    /** From 1, January. */
    month: number;
    /** From 1. */
    day: number;
    /** 0 to 23. */
    hour: number;
    minute: number;
    second: number;
    /** From 1, Monday, to 7, Sunday. */
    weekday: number;
    /** How far the clocks are ahead of UTC, in seconds. */
    utcOffsetS: number;
    /** When the clocks are changed next, in milliseconds since the Unix epoch. */
    nextChange?: bigint;
  }

  /** Says why the verdict is what it is, for whoever asks "why can A see B?". */
  export function explain(text: string): void;
  /** The same for these viewers, and no others. */
  export function explainFor(viewers: Audience, text: string): void;
  /** The time, in milliseconds since the Unix epoch. */
  export function now(): bigint;
  /** Asks the host to decide again at this time. */
  export function reconsiderAt(ms: bigint): void;
  /** What the clocks of a zone, such as `Europe/Berlin`, show at a time. Undefined without such a zone. */
  export function localTime(zone: string, at: bigint): ClockTime | undefined;
  /** Writes a line to the host's log. */
  export function log(level: Level, text: string): void;
}
