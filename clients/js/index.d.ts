// What viewers may know about the presence of others, kept true by the client's rule.

/** The parts of a NATS connection that are used. npm's `nats`, `nats.ws` and `@nats-io/*` have them. */
export interface NatsConnection {
  publish(subject: string, data: Uint8Array, options?: { reply?: string }): void;
  subscribe(
    subject: string,
    options: { callback: (error: any, message: any) => void },
  ): { unsubscribe(): void };
  flush(): Promise<void>;
  status(): AsyncIterable<{ type: string }>;
}

export interface FeedOptions {
  /**
   * "filtered" (the default) reads `presence.filtered.*` and asks on `presence.query`: for
   * gateways. "inbox" reads `presence.inbox.<viewer>` and asks on
   * `presence.query.<viewer>`: for viewers themselves.
   */
  mode?: "filtered" | "inbox";
  /** The tenant's prefix; none by default. */
  prefix?: string;
  /** After a loss is noticed, the views ask within this time, at random. 500 by default. */
  jitterMs?: number;
  /**
   * About how often to ask about all users even if no loss was noticed; 0 for never. By
   * default 60,000 in inbox mode, otherwise 300,000.
   */
  refreshMs?: number;
  /** How many questions are under way at a time; 16 by default. */
  questionsAtATime?: number;
  /** How long to wait for an answer; 2,000 by default. */
  answerMs?: number;
  /** The prefix of reply subjects; by default the connection's own. */
  inboxPrefix?: string;
}

/** What a viewer knows about a user. */
export interface Presence {
  readonly userId: string;
  /** "unknown" until the first answer. */
  readonly status: "online" | "offline" | "unknown";
  /** What the viewer may see of an online user. */
  readonly metadata?: { readonly [key: string]: unknown };
  /** When an offline user was last seen, in milliseconds since 1970, if the viewer may know it. */
  readonly lastSeen?: number;
}

export class PresenceChange extends Event {
  readonly type: "change";
  readonly userId: string;
  readonly now: Presence;
  readonly before: Presence;
}

export class PresenceError extends Event {
  readonly type: "error";
  readonly error: Error;
}

/** What the views of one connection share. A gateway has one for all its viewers. */
export class PresenceFeed extends EventTarget {
  constructor(connection: NatsConnection, options?: FeedOptions);
  /** Subscribes; views do this by themselves. */
  start(): Promise<void>;
  /** Stops the feed: its views get no more messages. The connection stays open. */
  stop(): void;
  addEventListener(
    type: "error",
    listener: (event: PresenceError) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

export interface ViewOptions {
  /** The viewer's id. */
  viewer: string;
  /** The users to follow: ids, or the viewer's contacts and all users about whom they are told. */
  users?: Iterable<string> | "contacts";
}

interface ViewEvents {
  /** What the viewer knows about a user has changed. */
  change: PresenceChange;
  /** A message may have been lost: what is known may be out of date. */
  doubted: Event;
  /** The view is up to date again. */
  synced: Event;
  /** A question was not answered, and will be asked again. */
  error: PresenceError;
}

/** What one viewer knows about the users whom they follow. */
export class PresenceView extends EventTarget {
  constructor(feed: PresenceFeed, options: ViewOptions);
  constructor(connection: NatsConnection, options: ViewOptions & FeedOptions);
  readonly viewer: string;
  /** Whether the view is up to date: no loss was noticed since the last answers. */
  readonly synced: boolean;
  /**
   * Subscribes, and asks about all users. Resolves when the first answers are there, or the
   * view is stopped; without an answer, it asks again and again.
   */
  start(): Promise<void>;
  /** Stops the view. What it knows stays as it is. */
  stop(): void;
  /** What the viewer knows about a user; undefined if the view doesn't follow the user. */
  get(user: string): Presence | undefined;
  /** What the viewer knows about all users that the view follows. */
  users(): Presence[];
  /** Follows more users. */
  watch(users: Iterable<string>): void;
  /** Stops following these users. */
  unwatch(users: Iterable<string>): void;
  addEventListener<K extends keyof ViewEvents>(
    type: K,
    listener: (event: ViewEvents[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

/** The token that stands for an id in a NATS subject. */
export function token(id: string): string;
