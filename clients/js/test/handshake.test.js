// A connection that breaks while it is being made, beside a real broker: npm's client
// doesn't notice, and waits for `timeout`, which is 20 s by default. So the README has it
// set, and this test says why.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { connect as dial, createServer } from "node:net";
import { test } from "node:test";

// `require` looks in NODE_PATH, too, where the project's own tests have the packages.
const require = createRequire(import.meta.url);
const url = new URL(process.env.PRESENCE_NATS_URL ?? "nats://127.0.0.1:4222");

/** A network that cuts the second connection after the broker's first word. */
function network(connections) {
  return createServer((near) => {
    const number = connections.push(near);
    const far = dial(Number(url.port), url.hostname);
    for (const socket of [near, far]) socket.on("error", () => {});
    near.on("close", () => far.destroy());
    far.on("close", () => near.destroy());
    far.pipe(near);
    near.on("data", (said) => (number === 2 ? near.destroy() : far.write(said)));
  });
}

async function reconnects(connect) {
  const connections = [];
  const proxy = network(connections);
  await new Promise((listening) => proxy.listen(0, "127.0.0.1", listening));
  const servers = `127.0.0.1:${proxy.address().port}`;
  const options = { maxReconnectAttempts: -1, reconnectTimeWait: 20, timeout: 1_000 };
  const nc = await connect({ servers, ...options });
  const status = nc.status();
  const reconnected = (async () => {
    for await (const { type } of status) if (type === "reconnect") return true;
    return false;
  })();
  connections[0].destroy();
  // Far longer than it takes, and shorter than what it takes by default.
  const late = new Promise((resolve) => setTimeout(resolve, 15_000, false).unref());
  assert.ok(await Promise.race([reconnected, late]));
  await nc.close();
  proxy.close();
}

for (const name of ["nats", "@nats-io/transport-node"]) {
  const what = `${name}: a connection that is cut while it is being made is made again soon`;
  test(what, () => reconnects(require(name).connect));
}
