// What the client must do, on a real broker beside a fake host. Runs in Node and in a
// browser: `connect` and `headers` are those of the NATS client at hand.

import { PresenceFeed, PresenceView, token } from "../src/index.js";
import { equal, ok, until } from "./check.js";
import { FakeHost } from "./fake-host.js";

/** A view's options that make re-queries immediate, so that tests needn't wait. */
const SOON = { jitterMs: 0 };

/** A broker's connection for the host and one for the client, under subjects of their own. */
class Stage {
  #closing = [];

  constructor({ connect, headers }) {
    this.connect = async (options) => {
      const nc = await connect(options);
      this.#closing.push(() => nc.close());
      return nc;
    };
    this.headers = headers;
    this.prefix = `test-${Math.random().toString(36).slice(2)}`;
  }

  async host(options = {}) {
    const { prefix } = this;
    const host = new FakeHost(await this.connect(), this.headers, { prefix, ...options });
    await host.start();
    this.hostConnection = host.nc;
    return host;
  }

  /** A view on a connection of its own. */
  async view(options) {
    this.client ??= await this.connect();
    const { prefix } = this;
    const view = new PresenceView(this.client, { prefix, ...SOON, ...options });
    this.atEnd(() => view.stop());
    view.addEventListener("error", (event) => this.errors.push(event.error.message));
    return view;
  }

  errors = [];

  /** Until the client has handled all that the host has published. */
  async handled() {
    await this.hostConnection.flush();
    await this.client.flush();
  }

  /** Before the connections are closed. */
  atEnd(close) {
    this.#closing.unshift(close);
  }

  async end() {
    for (const close of this.#closing) await close();
  }
}

const status = (view, user) => view.get(user)?.status;
const asked = (host, count) => until(`${count} questions`, () => host.questions.length >= count);
const synced = (view) => until("the view to be synced", () => view.synced);

/** A started view on one that is online, with the host known to it. */
async function settled(stage, options = {}) {
  const host = await stage.host();
  host.online("ann", ["ben"], { lost: true });
  const view = await stage.view({ viewer: "ben", users: ["ann", "dan"], ...options });
  await view.start();
  host.beacon();
  await stage.handled();
  await synced(view);
  host.questions.length = 0;
  return { host, view };
}

export const scenarios = {
  async "a view knows what is answered first, and then what it is told"(stage) {
    const host = await stage.host();
    host.online("ann", ["ben"]);
    const view = await stage.view({ viewer: "ben", users: ["ann", "dan"] });
    equal(view.get("ann"), { userId: "ann", status: "unknown" });
    equal(view.get("eve"), undefined);
    await view.start();
    equal(view.users(), [
      { userId: "ann", status: "online", metadata: { device: "web" } },
      { userId: "dan", status: "offline" },
    ]);
    const changes = [];
    view.addEventListener("change", ({ userId, now, before }) => {
      changes.push([userId, before.status, now.status]);
    });
    host.offline("ann", ["ben"], { lastSeen: 7 });
    host.online("dan", ["ben"]);
    host.updated("dan", ["ben"], { device: "web", activity: "typing" });
    await stage.handled();
    equal(view.get("ann"), { userId: "ann", status: "offline", lastSeen: 7 });
    equal(view.get("dan").metadata, { device: "web", activity: "typing" });
    equal(changes, [
      ["ann", "online", "offline"],
      ["dan", "offline", "online"],
      ["dan", "online", "online"],
    ]);
  },

  async "what is for others, or of users who aren't followed, is none of its business"(stage) {
    const { host, view } = await settled(stage);
    host.offline("ann", ["eve"]);
    host.online("dan", ["eve"]);
    host.online("fay", ["ben"]);
    await stage.handled();
    equal([status(view, "ann"), status(view, "dan"), status(view, "fay")], ["online", "offline", undefined]);
    equal(host.questions, []);
  },

  async "a gap in the numbers of a subject has it ask, and replace what it knew"(stage) {
    const { host, view } = await settled(stage);
    host.offline("ann", ["ben"], { lost: true });
    await stage.handled();
    equal(status(view, "ann"), "online");
    host.offline("eve", ["gus"]);
    await asked(host, 1);
    await synced(view);
    equal(status(view, "ann"), "offline");
    equal(host.questions.map(({ userIds }) => userIds), [["ann", "dan"]]);
  },

  async "a beacon shows that the last messages were lost"(stage) {
    const { host, view } = await settled(stage);
    host.online("dan", ["ben"], { lost: true });
    await stage.handled();
    equal(status(view, "dan"), "offline");
    host.beacon();
    await asked(host, 1);
    await synced(view);
    equal(status(view, "dan"), "online");
    host.beacon();
    await stage.handled();
    equal(host.questions.length, 1, "the number of questions, when a beacon tells nothing new");
  },

  async "a beacon's numbers on subjects that the view doesn't read are no loss"(stage) {
    const { host } = await settled(stage);
    host.beacon({ [`${stage.prefix}.presence.events.user_online`]: 99 });
    await stage.handled();
    equal(host.questions, []);
  },

  async "a new epoch has it ask, whether a message or a beacon shows it"(stage) {
    const { host, view } = await settled(stage);
    host.restart();
    host.offline("ann", ["ben"], { lost: true });
    host.restart();
    host.online("eve", ["gus"]);
    await asked(host, 1);
    await synced(view);
    equal(status(view, "ann"), "offline");
    host.online("ann", ["ben"], { lost: true });
    host.restart();
    host.beacon();
    await asked(host, 2);
    await synced(view);
    equal(status(view, "ann"), "online");
  },

  async "what an epoch says that has ended is ignored"(stage) {
    const { host, view } = await settled(stage);
    const [late] = host.offline("ann", ["ben"], { lost: true });
    host.online("ann", ["ben"], { lost: true });
    host.restart();
    host.beacon();
    await asked(host, 1);
    await synced(view);
    host.publish(late);
    await stage.handled();
    equal(status(view, "ann"), "online");
  },

  async "what is said again under the same number is ignored"(stage) {
    const { host, view } = await settled(stage);
    const [online] = host.online("dan", ["ben"]);
    const [offline] = host.offline("dan", ["ben"]);
    for (const message of [online, offline, online]) host.publish(message);
    await stage.handled();
    equal(status(view, "dan"), "offline");
    equal(host.questions, []);
  },

  async "messages that were lost and are said again in their turn are taken"(stage) {
    const { host, view } = await settled(stage);
    const [online] = host.online("dan", ["ben"], { lost: true });
    host.publish(online);
    host.beacon();
    await stage.handled();
    equal(status(view, "dan"), "online");
    equal(host.questions, []);
  },

  async "an event that comes while a question is under way stands"(stage) {
    const { host, view } = await settled(stage);
    host.holds = true;
    // Lost: that Dan came online. The answer, held back, says that both are online.
    host.online("dan", ["ben"], { lost: true });
    host.beacon();
    await asked(host, 1);
    host.offline("ann", ["ben"], { lastSeen: 9 });
    await stage.handled();
    equal(status(view, "ann"), "offline");
    const changes = [];
    view.addEventListener("change", ({ userId }) => changes.push(userId));
    host.release();
    await synced(view);
    equal([status(view, "ann"), status(view, "dan")], ["offline", "online"]);
    equal(changes, ["dan"], "the changes");
  },

  async "a gap while a question is under way has it ask once more"(stage) {
    const { host, view } = await settled(stage);
    host.holds = true;
    host.online("dan", ["ben"], { lost: true });
    host.beacon();
    await asked(host, 1);
    host.offline("ann", ["ben"], { lost: true });
    for (let times = 0; times < 5; times++) host.beacon();
    await stage.handled();
    equal(host.questions.length, 1, "the number of questions, while the first isn't answered");
    host.release();
    await asked(host, 2);
    await synced(view);
    equal([status(view, "ann"), status(view, "dan")], ["offline", "online"]);
    equal(host.questions.length, 2, "the number of questions");
  },

  async "five thousand users are asked after in batches, few at a time"(stage) {
    const host = await stage.host();
    const users = Array.from({ length: 5_000 }, (_, number) => `user-${number}`);
    for (const user of users) host.online(user, ["ben"], { lost: true });
    host.holds = true;
    const view = await stage.view({ viewer: "ben", users, questionsAtATime: 2 });
    const started = view.start();
    let most = 0;
    while (!view.synced) {
      await until("questions, or their end", () => host.held > 0 || view.synced);
      await stage.handled();
      most = Math.max(most, host.held);
      host.release();
      host.holds = true;
      await stage.handled();
    }
    await started;
    equal(host.questions.map(({ userIds }) => userIds.length), [1000, 1000, 1000, 1000, 1000]);
    equal(most, 2, "the questions under way");
    ok(view.users().every(({ status }) => status === "online"), "all are online");
  },

  async "it asks until somebody answers"(stage) {
    const client = (stage.client = await stage.connect());
    const view = await stage.view({ viewer: "ben", users: ["ann"] });
    const started = view.start();
    await until("it to say that nobody answers", () => stage.errors.length > 1);
    ok(stage.errors.every((text) => text.includes("nobody answers")), stage.errors[0]);
    equal(view.synced, false);
    const host = await stage.host();
    host.online("ann", ["ben"], { lost: true });
    await started;
    equal(status(view, "ann"), "online");
    equal(view.get("ann").metadata, { device: "web" });
    ok(!client.isClosed(), "the connection is the caller's");
  },

  async "a refusal and silence have it ask again, and what is no answer is skipped"(stage) {
    const host = await stage.host();
    const refusals = [
      { ok: false, reason: "overloaded", error: "later" },
      null,
      { ok: false, reason: "unavailable", error: "the directory is away" },
    ];
    host.refuses = () => refusals.shift();
    host.online("ann", ["ben"], { lost: true });
    // As a stream over all subjects does.
    const stream = await stage.connect();
    const ack = new TextEncoder().encode('{"stream":"ALL","seq":12}');
    const callback = (_, message) => message.respond(ack);
    stream.subscribe(`${stage.prefix}.presence.>`, { callback });
    await stream.flush();
    const view = await stage.view({ viewer: "ben", users: ["ann"], answerMs: 200 });
    await view.start();
    equal(status(view, "ann"), "online");
    ok(stage.errors.some((text) => text.includes("overloaded: later")), `${stage.errors}`);
    ok(stage.errors.some((text) => text.includes("no answer within 200 ms, and 1 that are none")), `${stage.errors}`);
  },

  async "an answer that is too large is asked for in halves"(stage) {
    const host = await stage.host();
    host.refuses = ({ userIds }) => {
      const reason = "too-large";
      return userIds.length > 3 ? { ok: false, reason, error: "ask in parts" } : undefined;
    };
    const users = Array.from({ length: 10 }, (_, number) => `user-${number}`);
    for (const user of users) host.online(user, ["ben"], { lost: true });
    const view = await stage.view({ viewer: "ben", users });
    await view.start();
    ok(view.users().every(({ status }) => status === "online"), "all are online");
    equal(stage.errors, []);
  },

  async "after a reconnect of its own it asks"(stage) {
    const { host, view } = await settled(stage);
    let lost = false;
    (async () => {
      for await (const { type } of stage.client.status()) {
        if (type !== "disconnect" || lost) continue;
        lost = true;
        host.offline("ann", ["ben"], { lost: true });
      }
    })();
    const doubted = new Promise((resolve) => view.addEventListener("doubted", resolve, { once: true }));
    await stage.client.reconnect();
    await doubted;
    await asked(host, 1);
    await until("what was lost", () => status(view, "ann") === "offline");
    await synced(view);
    host.online("ann", ["ben"]);
    await stage.handled();
    equal(status(view, "ann"), "online", "what it hears over the new connection");
  },

  async "in inbox mode it reads and asks where only its viewer may"(stage) {
    const host = await stage.host();
    host.online("ann", ["ben"], { inbox: true });
    const view = await stage.view({ viewer: "ben", users: ["ann", "dan"], mode: "inbox" });
    await view.start();
    equal(host.questions[0].subject, `${stage.prefix}.presence.query.ben`);
    equal(status(view, "ann"), "online");
    host.offline("ann", ["ben", "cleo"], { inbox: true });
    await stage.handled();
    equal(status(view, "ann"), "offline");
    await synced(view);

    // Others' inboxes have numbers of their own.
    host.questions.length = 0;
    host.online("ann", ["cleo"], { inbox: true });
    host.online("dan", ["ben"], { inbox: true });
    await stage.handled();
    equal(host.questions, []);
    host.offline("dan", ["ben"], { inbox: true, lost: true });
    host.online("ann", ["ben"], { inbox: true });
    await until("what was lost", () => status(view, "dan") === "offline");
    host.offline("ann", ["ben"], { inbox: true, lost: true });
    host.restart();
    host.beacon();
    await until("what an epoch took with it", () => status(view, "ann") === "offline");
    equal([token("ben"), token("ann@example.com"), token("a.b")], ["ben", "=YW5uQGV4YW1wbGUuY29t", "=YS5i"]);
  },

  async "what no number shows is asked after now and then"(stage) {
    const { host, view } = await settled(stage, { mode: "inbox", refreshMs: 100 });
    host.offline("ann", ["ben"], { inbox: true, lost: true });
    await until("what was lost", () => status(view, "ann") === "offline");
  },

  async "the viewer's contacts are followed, and all users the viewer is told about"(stage) {
    const host = await stage.host();
    host.contacts.set("ben", ["ann", "dan"]);
    host.online("ann", ["ben"]);
    const view = await stage.view({ viewer: "ben", users: "contacts" });
    await view.start();
    equal(view.users().map(({ userId }) => userId), ["ann", "dan"]);
    host.online("eve", ["ben"]);
    await stage.handled();
    equal(status(view, "eve"), "online");
    await synced(view);

    host.offline("eve", ["ben"], { lost: true });
    host.contacts.set("ben", ["ann", "dan", "fay"]);
    host.online("fay", ["ben"], { lost: true });
    host.beacon();
    await until("the loss", () => status(view, "eve") === undefined);
    await synced(view);
    equal(view.users().map(({ userId, status }) => [userId, status]), [
      ["ann", "online"],
      ["dan", "offline"],
      ["fay", "online"],
    ]);
  },

  async "users come to be followed, and are no more"(stage) {
    const { host, view } = await settled(stage);
    host.online("eve", ["ben"], { lost: true });
    view.watch(["eve", "ann"]);
    await until("the answer", () => status(view, "eve") === "online");
    equal(host.questions.map(({ userIds }) => userIds), [["eve"]]);
    view.unwatch(["ann"]);
    equal(view.get("ann"), undefined);
    for (const wrong of ["", "x".repeat(257), 7]) {
      let refused = false;
      try {
        view.watch([wrong]);
      } catch {
        refused = true;
      }
      ok(refused, `${wrong} is refused`);
    }
    await synced(view);
  },

  async "one feed serves a gateway's viewers, and each asks once"(stage) {
    const host = await stage.host();
    const client = (stage.client = await stage.connect());
    const { prefix } = stage;
    const feed = new PresenceFeed(client, { prefix, ...SOON, questionsAtATime: 8 });
    stage.atEnd(() => feed.stop());
    const viewers = Array.from({ length: 500 }, (_, number) => `viewer-${number}`);
    const views = viewers.map((viewer) => new PresenceView(feed, { viewer, users: ["ann"] }));
    await Promise.all(views.map((view) => view.start()));
    host.beacon();
    await stage.handled();
    await until("all to be synced", () => views.every((view) => view.synced));
    equal(host.questions.length, 1_000, "the number of questions, at first and of a new source");
    host.questions.length = 0;

    host.online("ann", viewers.slice(0, 250));
    await stage.handled();
    const online = () => views.filter((view) => status(view, "ann") === "online").length;
    equal(online(), 250);
    host.offline("ann", viewers.slice(0, 250), { lost: true });
    for (let times = 0; times < 3; times++) host.beacon();
    await until("all to hear of it", () => online() === 0 && views.every((view) => view.synced));
    equal(host.questions.length, 500, "the number of questions");

    // Who has stopped hears and asks no more.
    for (const view of views.slice(1)) view.stop();
    host.online("ann", viewers, { lost: true });
    host.beacon();
    await until("the one to hear of it", () => online() === 1);
    equal(host.questions.length, 501);
  },

  async "several sources number for themselves"(stage) {
    const { host, view } = await settled(stage);
    const other = await stage.host({ source: "node-1/1" });
    other.refuses = () => null;
    await other.leave();
    host.online("dan", ["ben"]);
    other.online("dan", ["ben"]);
    await stage.handled();
    await asked(host, 1);
    await synced(view);
    host.questions.length = 0;
    other.offline("ann", ["eve"]);
    // The first on this subject that the view heard of, and it is the first.
    other.online("gus", ["eve"]);
    await stage.handled();
    equal(host.questions, []);
  },

  async "messages that aren't the host's are said to be wrong, and change nothing"(stage) {
    const host = await stage.host();
    host.online("ann", ["ben"]);
    const client = (stage.client = await stage.connect());
    const { prefix } = stage;
    const feed = new PresenceFeed(client, { prefix, ...SOON });
    stage.atEnd(() => feed.stop());
    feed.addEventListener("error", (event) => stage.errors.push(event.error.message));
    const view = new PresenceView(feed, { viewer: "ben", users: ["ann"] });
    await view.start();
    const subject = `${prefix}.presence.filtered.user_offline`;
    const body = { type: "user_offline", userId: "ann", visibleTo: ["ben"] };
    host.publish({ subject, header: "7", body });
    host.publish({ subject, header: "node-1/0 1000 1", body: { type: "user_offline" } });
    host.publish({ subject: `${prefix}.presence.beacon`, header: "node-1/0 1000 1", body: { seqs: null } });
    await stage.handled();
    equal(status(view, "ann"), "online");
    const wrong = ["isn't the host's", "no filtered event", "no beacon"];
    for (const words of wrong) ok(stage.errors.some((text) => text.includes(words)), words);
    await synced(view);
  },
};

/** Runs one of them. */
export async function run(name, client) {
  const stage = new Stage(client);
  try {
    await scenarios[name](stage);
  } finally {
    await stage.end();
  }
}
