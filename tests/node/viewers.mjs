// Viewers at work: the reference client, with a view for each viewer.
//
//   node viewers.mjs <nats url> <viewers, separated by commas> <users, likewise>
//
// Every viewer has two views: one on a gateway's feed of `presence.filtered.*`, and one on
// a feed of the viewers' inboxes. The port on which they are asked is written to standard
// output as `port N`. GET / answers with what each believes: { filtered, inbox }, each a
// map of the viewer to { synced, online, ever }, where the last two are the users whom the
// view holds to be online now, and those whom it ever did.

import { createServer } from "node:http";
import { createRequire } from "node:module";

import { PresenceFeed, PresenceView } from "../../clients/js/src/index.js";

const { connect } = createRequire(import.meta.url)("nats");

const [servers, viewers, users] = process.argv.slice(2);

async function views(mode) {
  const nc = await connect({
    servers,
    name: `viewers ${mode}`,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 50,
    reconnectJitter: 50,
    // A connection that breaks while it is made is noticed by this alone.
    timeout: 1_000,
    // So that a silent link is noticed within seconds.
    pingInterval: 1_000,
  });
  const feed = new PresenceFeed(nc, { mode });
  feed.addEventListener("error", ({ error }) => console.error(mode, error.message));
  const views = viewers.split(",").map((viewer) => {
    const view = new PresenceView(feed, { viewer, users: users.split(",") });
    view.ever = new Set();
    view.addEventListener("error", ({ error }) => console.error(viewer, error.message));
    view.addEventListener("change", ({ userId, now }) => {
      if (now.status === "online") view.ever.add(userId);
    });
    return view;
  });
  await Promise.all(views.map((view) => view.start()));
  return views;
}

const all = { filtered: await views("filtered"), inbox: await views("inbox") };

const belief = (view) => {
  const online = view.users().filter(({ status }) => status === "online");
  return { synced: view.synced, online: online.map(({ userId }) => userId), ever: [...view.ever] };
};

const server = createServer((_, response) => {
  const believed = Object.entries(all).map(([mode, views]) => {
    return [mode, Object.fromEntries(views.map((view) => [view.viewer, belief(view)]))];
  });
  response.end(JSON.stringify(Object.fromEntries(believed)));
});
server.listen(0, "127.0.0.1", () => console.log(`port ${server.address().port}`));
