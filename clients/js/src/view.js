// What one viewer knows of the users they follow.
//
// It learns from events, which its feed hands it, and from answers to its questions.
// Which of the two stands when they meet? An answer is gathered from several workers, so
// what it says of a user may be older than an event that came while the question was
// under way; and it may as well be newer. Say that an event E about a user came after the
// question was sent and before its answer. Then E stands, and the answer's word on this
// user is dropped. This is right in either case:
//   - the answer is older than E: then E is what is true;
//   - the answer is newer, and shows a later event F of the same user. All events of a
//     user come from one source in one order, so F comes after E: it is on its way, and
//     says what the answer said. If F is lost, the source's numbers show it, and
//     the view asks again.
// No clock is compared: a correction may repeat an event with the timestamp it had.

import { PresenceChange, PresenceError } from "./events.js";
import { PresenceFeed } from "./feed.js";
import { checkId, token } from "./token.js";

/** How many users one question may name: the host's bound. */
const USERS_MAX = 1_000;

export class PresenceView extends EventTarget {
  #feed;
  #ownsFeed;
  #viewer;
  /** Whether it follows the viewer's contacts, and all users the viewer is told about. */
  #contacts = false;
  /** By user id: { state, touched, contact }: when an event last touched it, by the feed's ticks. */
  #users = new Map();
  /** Whether something may have been missed that no question has been asked after yet. */
  #doubted = false;
  /** How many questions have no answer yet. */
  #asking = 0;
  #running = false;
  #firstAnswers;
  #gotFirstAnswers;

  /**
   * @param source a NATS connection, or a PresenceFeed that serves many views
   * @param options viewer, users (a list of ids, or "contacts"), and, with a connection,
   *   the feed's own options
   */
  constructor(source, { viewer, users = [], ...feedOptions }) {
    super();
    this.#viewer = checkId(viewer);
    this.#ownsFeed = !(source instanceof PresenceFeed);
    this.#feed = this.#ownsFeed ? new PresenceFeed(source, feedOptions) : source;
    if (users === "contacts") this.#contacts = true;
    else for (const user of users) this.#follow(user);
  }

  get viewer() {
    return this.#viewer;
  }

  /**
   * Begins to listen and asks after everyone. Resolves when the first answers are there,
   * or the view is stopped. While nobody answers it goes on asking, so don't await it
   * where that would hold something up; "error" events say why it takes so long.
   */
  async start() {
    if (this.#running) return this.#firstAnswers;
    this.#running = true;
    this.#doubted = true;
    this.#firstAnswers = new Promise((resolve) => (this.#gotFirstAnswers = resolve));
    await this.#feed.start();
    if (!this.#running) return;
    // First listen, then ask: what happens in between is heard.
    this.#feed.attach(this);
    this.resolveDoubt();
    return this.#firstAnswers;
  }

  /** Ends it. What it knows stays as it is. */
  stop() {
    if (!this.#running) return;
    this.#running = false;
    this.#feed.detach(this);
    if (this.#ownsFeed) this.#feed.stop();
    this.#gotFirstAnswers();
  }

  /**
   * What the viewer knows of a user: { userId, status, metadata?, lastSeen? }, with the
   * status "online", "offline", or "unknown" before the first answer; undefined if the
   * view doesn't follow the user.
   */
  get(user) {
    return this.#users.get(user)?.state;
  }

  /** What the viewer knows of everyone: a list of what `get` returns. */
  users() {
    return Array.from(this.#users.values(), ({ state }) => state);
  }

  /** Whether it knows of nothing that it may have missed and hasn't asked after. */
  get synced() {
    return this.#running && !this.#doubted && this.#asking === 0;
  }

  /** Follows more users. */
  watch(users) {
    const more = [...new Set(users)].filter((user) => !this.#users.has(checkId(user)));
    // An answer that is under way to an earlier question is none to this one.
    for (const user of more) this.#follow(user, this.#feed.tick());
    // Those of a view that is starting are asked after with the others.
    if (this.#running && this.#feed.has(this)) this.#askAfter(more);
  }

  /** Follows these users no more. */
  unwatch(users) {
    for (const user of users) this.#users.delete(user);
  }

  // What follows is for the feed.

  /** @internal An event that the viewer may see. */
  hear(event) {
    if (this.#contacts) this.#follow(event.userId);
    const user = this.#users.get(event.userId);
    if (user === undefined) return;
    user.touched = this.#feed.tick();
    const { metadata, lastSeen } = event;
    if (event.type === "user_offline") this.#know(user, "offline", { lastSeen });
    else this.#know(user, "online", { metadata });
  }

  /** @internal Something may have been missed. */
  doubt() {
    if (this.#doubted) return;
    const wasSynced = this.synced;
    this.#doubted = true;
    if (wasSynced) this.dispatchEvent(new Event("doubted"));
  }

  /** @internal Asks after everyone if there is a reason to. */
  resolveDoubt() {
    // What is being asked already is answered first, so that doubts that come faster
    // than answers neither pile up questions nor keep every answer from being used.
    if (this.#doubted && this.#asking === 0) this.#ask();
  }

  #ask() {
    this.#doubted = false;
    if (this.#contacts) this.#askAfterContacts();
    else this.#askAfter([...this.#users.keys()]);
    this.#settle();
  }

  #askAfter(ids) {
    for (let from = 0; from < ids.length; from += USERS_MAX) {
      this.#question(ids.slice(from, from + USERS_MAX), (answers) => {
        for (const answer of answers) this.#forgetStranger(answer.userId);
      });
    }
  }

  /** The current contacts, and then all other users that the view knows. */
  #askAfterContacts() {
    this.#question("contacts", (answers) => {
      const contacts = new Set(answers.map(({ userId }) => userId));
      for (const [id, user] of this.#users) user.contact = contacts.has(id);
      this.#askAfter([...this.#users.keys()].filter((id) => !contacts.has(id)));
    });
  }

  /** One question. `then` comes after what was answered is known. */
  #question(users, then) {
    let sentAt;
    this.#asking += 1;
    const viewer = this.#viewer;
    this.#feed.ask({
      subject: this.#feed.querySubject(viewer),
      viewer,
      users,
      wanted: () => this.#running,
      sent: () => {
        sentAt = this.#feed.tick();
      },
      answered: (answers) => {
        if (!this.#running) return;
        this.#asking -= 1;
        for (const answer of answers) this.#answered(answer, sentAt);
        then(answers);
        this.#settle();
      },
      failed: (error) => this.dispatchEvent(new PresenceError(error)),
      tooLarge: () => {
        this.#asking -= 1;
        if (users.length > 1 && users !== "contacts") {
          const half = Math.ceil(users.length / 2);
          this.#question(users.slice(0, half), then);
          this.#question(users.slice(half), then);
        } else {
          const error = new Error(`the answer on ${users} is larger than the broker takes`);
          this.dispatchEvent(new PresenceError(error));
          this.#settle();
        }
      },
    });
  }

  #answered({ userId, status, metadata, lastSeen }, sentAt) {
    if (this.#contacts) this.#follow(userId);
    const user = this.#users.get(userId);
    // Followed no more; or an event came in between, and stands (see the top).
    if (user === undefined || user.touched > sentAt) return;
    this.#know(user, status, { metadata, lastSeen });
  }

  /** Whether all has been answered. */
  #settle() {
    if (this.#asking > 0) return;
    this.#gotFirstAnswers();
    if (this.#doubted) this.#feed.resolveLater();
    else this.dispatchEvent(new Event("synced"));
  }

  #follow(id, touched = 0) {
    if (this.#users.has(checkId(id))) return;
    const state = Object.freeze({ userId: id, status: "unknown" });
    this.#users.set(id, { state, touched, contact: false });
  }

  /** Who isn't a contact is followed while there is something to know of them. */
  #forgetStranger(id) {
    const user = this.#users.get(id);
    if (!this.#contacts || user === undefined || user.contact) return;
    if (user.state.status === "offline") this.#users.delete(id);
  }

  #know(user, status, { metadata, lastSeen }) {
    const before = user.state;
    const now = { userId: before.userId, status };
    if (metadata !== undefined) now.metadata = metadata;
    if (lastSeen !== undefined) now.lastSeen = lastSeen;
    if (JSON.stringify(now) === JSON.stringify(before)) return;
    user.state = Object.freeze(now);
    this.dispatchEvent(new PresenceChange(now, before));
  }

  /** @internal Where the viewer's own events come. */
  get inbox() {
    return `presence.inbox.${token(this.#viewer)}`;
  }
}
