// What the views of one connection share: its subscriptions, what has been heard of each
// source, and the questions. A gateway has one feed for all its viewers.
//
// Every message comes through a callback, so that events, beacons and answers are
// handled in the order in which the broker sent them over the connection. The rule rests
// on that: a beacon tells of what came before it.

import { PresenceError } from "./events.js";
import { Questions } from "./questions.js";
import { Sources, readHeader } from "./sources.js";
import { token } from "./token.js";

const EVENTS = ["user_online", "user_offline", "user_updated"];
const MODES = ["filtered", "inbox"];

const decoder = new TextDecoder();

export class PresenceFeed extends EventTarget {
  #nc;
  #mode;
  #prefix;
  #jitterMs;
  #refreshMs;
  #questions;
  #sources = new Sources();
  #subscriptions = [];
  #status;
  #started;
  #stopped = false;
  #connected = true;
  /** By viewer: a set of views, and in inbox mode their subscription. */
  #viewers = new Map();
  #ticks = 0;
  /** Runs from the first doubt until the views ask. */
  #asksAt;
  #allDoubt = false;
  #refreshesAt;

  constructor(nc, options = {}) {
    super();
    const { mode = "filtered", prefix = "", jitterMs = 500, refreshMs } = options;
    const { questionsAtATime = 16, answerMs = 2_000, inboxPrefix } = options;
    if (!MODES.includes(mode)) {
      throw new TypeError(`mode must be "filtered" or "inbox", not ${JSON.stringify(mode)}`);
    }
    this.#nc = nc;
    this.#mode = mode;
    this.#prefix = prefix === "" ? "" : `${prefix}.`;
    this.#jitterMs = jitterMs;
    this.#refreshMs = refreshMs ?? (mode === "inbox" ? 60_000 : 300_000);
    this.#questions = new Questions(nc, { atATime: questionsAtATime, answerMs, inboxPrefix });
  }

  /** Subscribes. Views do this by themselves. Resolves when the broker has it. */
  start() {
    this.#started ??= this.#start();
    return this.#started;
  }

  async #start() {
    this.#questions.start();
    if (this.#mode === "filtered") {
      for (const event of EVENTS) {
        const subject = this.#subject(`presence.filtered.${event}`);
        this.#subscriptions.push(this.#subscribe(subject, this.#hearFiltered));
      }
    }
    const beacon = this.#subject("presence.beacon");
    this.#subscriptions.push(this.#subscribe(beacon, this.#hearBeacon));
    this.#watchStatus();
    this.#refreshLater();
    await this.#nc.flush();
  }

  /** Ends it, and nothing more is heard or asked. Its views aren't told. */
  stop() {
    this.#stopped = true;
    for (const subscription of this.#subscriptions) subscription.unsubscribe();
    for (const { subscription } of this.#viewers.values()) subscription?.unsubscribe();
    this.#viewers.clear();
    this.#questions.stop();
    this.#status?.stop?.();
    clearTimeout(this.#asksAt);
    clearTimeout(this.#refreshesAt);
  }

  // What follows is for views.

  /** @internal Has a view hear what its viewer is told from here on. */
  attach(view) {
    let viewer = this.#viewers.get(view.viewer);
    if (viewer === undefined) {
      viewer = { views: new Set(), subscription: undefined };
      this.#viewers.set(view.viewer, viewer);
      if (this.#mode === "inbox") {
        viewer.subscription = this.#subscribe(this.#subject(view.inbox), this.#hearInbox(viewer));
      }
    }
    viewer.views.add(view);
    // This one may not doubt any more before the others ask.
    this.#allDoubt = false;
  }

  /** @internal */
  detach(view) {
    const viewer = this.#viewers.get(view.viewer);
    viewer?.views.delete(view);
    if (viewer?.views.size === 0) {
      viewer.subscription?.unsubscribe();
      this.#viewers.delete(view.viewer);
    }
  }

  /** @internal */
  has(view) {
    return this.#viewers.get(view.viewer)?.views.has(view) ?? false;
  }

  /** @internal Tells before from after: each is later than all before it. */
  tick() {
    return ++this.#ticks;
  }

  /** @internal */
  ask(question) {
    this.#questions.ask(question);
  }

  /** @internal Where a viewer asks: in inbox mode, where the broker can check who it is. */
  querySubject(viewer) {
    const own = this.#mode === "inbox" ? `.${token(viewer)}` : "";
    return this.#subject(`presence.query${own}`);
  }

  /**
   * @internal Has views that doubt ask, in a while: many clients that notice the same
   * thing at once don't all ask at once, and what is noticed meanwhile is asked after
   * with it.
   */
  resolveLater() {
    if (this.#asksAt !== undefined || this.#stopped) return;
    this.#asksAt = setTimeout(() => {
      this.#asksAt = undefined;
      this.#allDoubt = false;
      for (const view of this.#views()) view.resolveDoubt();
    }, Math.random() * this.#jitterMs);
  }

  *#views() {
    for (const { views } of this.#viewers.values()) yield* views;
  }

  #subject(subject) {
    return this.#prefix + subject;
  }

  #subscribe(subject, hear) {
    const callback = (error, message) => {
      if (error) this.#complain(`${subject}: ${error.message}`);
      else if (!this.#stopped) hear(message);
    };
    return this.#nc.subscribe(subject, { callback });
  }

  #hearFiltered = (message) => {
    const heard = this.#hear(message);
    if (heard === undefined) return;
    if (heard.isDoubtful) this.#doubtAll();
    for (const viewer of heard.event.visibleTo) {
      for (const view of this.#viewers.get(viewer)?.views ?? []) view.hear(heard.event);
    }
  };

  #hearInbox = (viewer) => (message) => {
    const heard = this.#hear(message);
    if (heard === undefined) return;
    // A new epoch concerns everyone; what is missing on an inbox, this viewer alone.
    if (heard.found === "new") this.#doubtAll();
    if (heard.found === "gap") {
      for (const view of viewer.views) view.doubt();
      this.resolveLater();
    }
    for (const view of viewer.views) view.hear(heard.event);
  };

  /** An event, and whether it came in its turn; undefined if it is to be ignored. */
  #hear(message) {
    const header = readHeader(message.headers?.get("Presence-Seq"));
    if (header === undefined) {
      this.#complain(`${message.subject}: a message without Presence-Seq isn't the host's`);
      return undefined;
    }
    const event = this.#json(message);
    const found = this.#sources.hear(message.subject, header);
    if (found === "old") return undefined;
    if (found === "new") this.#questions.wake();
    if (!isEvent(event)) {
      this.#complain(`${message.subject}: this is no filtered event`);
      this.#doubtAll();
      return undefined;
    }
    return { event, found, isDoubtful: found !== "next" };
  }

  #hearBeacon = (message) => {
    const beacon = this.#json(message);
    if (!isBeacon(beacon)) {
      this.#complain(`${message.subject}: this is no beacon`);
      return;
    }
    const filtered = this.#subject("presence.filtered.");
    const listens = (subject) => this.#mode === "filtered" && subject.startsWith(filtered);
    const found = this.#sources.hearBeacon(beacon, listens);
    if (found === "new") this.#questions.wake();
    if (found !== "next") this.#doubtAll();
  };

  #json(message) {
    try {
      return JSON.parse(decoder.decode(message.data));
    } catch {
      return undefined;
    }
  }

  #doubtAll() {
    if (!this.#allDoubt) {
      this.#allDoubt = true;
      for (const view of this.#views()) view.doubt();
    }
    if (this.#connected) this.resolveLater();
  }

  /** What was published while the connection was away is lost. */
  async #watchStatus() {
    this.#status = this.#nc.status();
    for await (const { type } of this.#status) {
      if (this.#stopped) return;
      if (type === "disconnect") {
        this.#connected = false;
        this.#questions.disconnected();
        this.#doubtAll();
      } else if (type === "reconnect") {
        this.#connected = true;
        this.#doubtAll();
        this.#questions.wake(true);
      }
    }
    if (!this.#stopped) this.#complain("the NATS connection was closed, and is not made again");
  }

  /** What no number shows, such as the loss of an inbox's last message. */
  #refreshLater() {
    if (this.#refreshMs === 0) return;
    this.#refreshesAt = setTimeout(() => {
      this.#doubtAll();
      this.#refreshLater();
    }, this.#refreshMs * (0.75 + Math.random() / 2));
  }

  #complain(text) {
    this.dispatchEvent(new PresenceError(new Error(text)));
  }
}

function isEvent(body) {
  const { type, userId, visibleTo } = body ?? {};
  return EVENTS.includes(type) && typeof userId === "string" && Array.isArray(visibleTo);
}

function isBeacon(body) {
  const { source, epoch, seqs } = body ?? {};
  const isMap = typeof seqs === "object" && seqs !== null;
  return typeof source === "string" && Number.isInteger(epoch) && isMap;
}
