// What viewers may know of others' presence, kept true by the client's rule.

/** What is used of a NATS connection: npm's `nats`, `nats.ws` and `@nats-io/*` have it. */
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
   * About how often everyone is asked after though nothing was noticed; 0 for never. By
   * default 60,000 in inbox mode, and else 300,000.
   */
  refreshMs?: number;
  /** How many questions are under way at a time; 16 by default. */
  questionsAtATime?: number;
  /** How long an answer is waited for; 2,000 by default. */
  answerMs?: number;
  /** What the subjects of answers begin with; by default what the connection uses. */
  inboxPrefix?: string;
}

/** What a viewer knows of a user. */
export interface Presence {
  readonly userId: string;
  /** "unknown" until the first answer. */
  readonly status: "online" | "offline" | "unknown";
  /** Of an online user, what the viewer may see. */
  readonly metadata?: { readonly [key: string]: unknown };
  /** Of an offline user, in milliseconds since the Unix epoch, if the viewer may know it. */
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
  /** Ends it, and with it what its views hear. The connection stays open. */
  stop(): void;
  addEventListener(
    type: "error",
    listener: (event: PresenceError) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

export interface ViewOptions {
  /** Whose view it is. */
  viewer: string;
  /** Whom it follows: ids, or the viewer's contacts and whoever they are told of. */
  users?: Iterable<string> | "contacts";
}

interface ViewEvents {
  /** What the viewer knows of a user has changed. */
  change: PresenceChange;
  /** Something may have been missed: what is known may be out of date. */
  doubted: Event;
  /** All has been asked after since. */
  synced: Event;
  /** A question wasn't answered, and will be asked again. */
  error: PresenceError;
}

/** What one viewer knows of the users they follow. */
export class PresenceView extends EventTarget {
  constructor(feed: PresenceFeed, options: ViewOptions);
  constructor(connection: NatsConnection, options: ViewOptions & FeedOptions);
  readonly viewer: string;
  /** Whether it knows of nothing that it may have missed and hasn't asked after. */
  readonly synced: boolean;
  /**
   * Begins to listen, and asks after everyone. Resolves when the first answers are there,
   * or the view is stopped; while nobody answers, it goes on asking.
   */
  start(): Promise<void>;
  /** Ends it. What it knows stays as it is. */
  stop(): void;
  /** What the viewer knows of a user; undefined if the view doesn't follow them. */
  get(user: string): Presence | undefined;
  /** What the viewer knows of everyone that the view follows. */
  users(): Presence[];
  /** Follows more users. */
  watch(users: Iterable<string>): void;
  /** Follows these users no more. */
  unwatch(users: Iterable<string>): void;
  addEventListener<K extends keyof ViewEvents>(
    type: K,
    listener: (event: ViewEvents[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

/** The token that stands for an id in a NATS subject. */
export function token(id: string): string;
