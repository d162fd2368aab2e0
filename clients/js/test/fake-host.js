// A host as the contract says one behaves, which does only what a test tells it: it
// numbers what it publishes, answers questions from what it was told, and can lose
// messages, begin a new epoch, be slow, or refuse.

const encoder = new TextEncoder();
const decoder = new TextDecoder();

export class FakeHost {
  /** What each viewer may see of users: viewer → user → the answer's fields. */
  #sight = new Map();
  #seqs = new Map();
  #held = [];
  /** The questions that came: { subject, viewerId, userIds }. */
  questions = [];
  /** Who each viewer's contacts are. */
  contacts = new Map();
  /** Whether answers wait until `release`. */
  holds = false;
  /** How to answer in place of an answer: a function of the question, or undefined. */
  refuses;

  constructor(nc, headers, { prefix = "", source = "node-1/0", epoch = 1000 } = {}) {
    this.nc = nc;
    this.headers = headers;
    this.prefix = prefix === "" ? "" : `${prefix}.`;
    this.source = source;
    this.epoch = epoch;
  }

  async start() {
    for (const subject of ["presence.query", "presence.query.*"]) {
      const callback = (error, message) => {
        if (!error) this.#asked(message);
      };
      this.subscriptions ??= [];
      this.subscriptions.push(this.nc.subscribe(this.prefix + subject, { callback }));
    }
    await this.nc.flush();
  }

  /** Answers no more. */
  async leave() {
    for (const subscription of this.subscriptions.splice(0)) subscription.unsubscribe();
    await this.nc.flush();
  }

  /** A user comes online, and these viewers are told. `lost`: none of them hears of it. */
  online(user, viewers, { metadata = { device: "web" }, ...how } = {}) {
    for (const viewer of viewers) this.#see(viewer, user, { status: "online", metadata });
    const body = { type: "user_online", userId: user, timestamp: 1, visibleTo: viewers, metadata };
    return this.tell(body, how);
  }

  offline(user, viewers, { lastSeen, ...how } = {}) {
    for (const viewer of viewers) this.#see(viewer, user, { status: "offline", lastSeen });
    const body = { type: "user_offline", userId: user, timestamp: 1, lastSeen, visibleTo: viewers };
    return this.tell(body, how);
  }

  updated(user, viewers, metadata, how = {}) {
    for (const viewer of viewers) this.#see(viewer, user, { status: "online", metadata });
    const body = { type: "user_updated", userId: user, timestamp: 1, visibleTo: viewers, metadata };
    return this.tell(body, how);
  }

  /** What an answer says from now on, without anybody being told. */
  #see(viewer, user, fields) {
    if (!this.#sight.has(viewer)) this.#sight.set(viewer, new Map());
    this.#sight.get(viewer).set(user, fields);
  }

  /** Publishes a body on its filtered subject; with `inbox`, on the viewers' inboxes. */
  tell(body, { lost = false, inbox = false } = {}) {
    const told = inbox
      ? body.visibleTo.map((viewer) => [`presence.inbox.${viewer}`, { ...body, visibleTo: [viewer] }])
      : [[`presence.filtered.${body.type}`, body]];
    const messages = told.map(([subject, body]) => ({ ...this.#next(subject), body }));
    if (!lost) for (const message of messages) this.publish(message);
    return messages;
  }

  #next(name) {
    const subject = this.prefix + name;
    const seq = (this.#seqs.get(subject) ?? 0) + 1;
    this.#seqs.set(subject, seq);
    return { subject, header: `${this.source} ${this.epoch} ${seq}` };
  }

  /** Publishes a message, perhaps not for the first time. */
  publish({ subject, header, body }) {
    const headers = this.headers();
    headers.set("Presence-Seq", header);
    this.nc.publish(subject, encoder.encode(JSON.stringify(body)), { headers });
  }

  beacon(seqs = Object.fromEntries(this.#seqs)) {
    delete seqs[`${this.prefix}presence.beacon`];
    const { source, epoch } = this;
    this.publish({ ...this.#next("presence.beacon"), body: { source, epoch, seqs } });
  }

  /** Starts again: all numbers begin anew, under a later epoch. */
  restart() {
    this.epoch += 1000;
    this.#seqs.clear();
  }

  release() {
    this.holds = false;
    for (const answer of this.#held.splice(0)) answer();
  }

  #asked(message) {
    const question = JSON.parse(decoder.decode(message.data));
    this.questions.push({ subject: message.subject, ...question });
    const respond = (body) => message.respond(encoder.encode(JSON.stringify(body)));
    const refusal = this.refuses?.(question);
    if (refusal !== undefined) {
      if (refusal !== null) respond(refusal);
      return;
    }
    const { viewerId, userIds } = question;
    const asked = userIds === "contacts" ? (this.contacts.get(viewerId) ?? []) : userIds;
    const sight = this.#sight.get(viewerId);
    // As it is now, however late it is said.
    const users = asked.map((userId) => ({ userId, ...(sight?.get(userId) ?? { status: "offline" }) }));
    const answer = () => respond({ viewerId, users });
    if (this.holds) this.#held.push(answer);
    else answer();
  }

  get held() {
    return this.#held.length;
  }
}
