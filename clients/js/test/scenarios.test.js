// The scenarios in Node, with both generations of the NATS client, on the broker that
// PRESENCE_NATS_URL names.

import { createRequire } from "node:module";
import { test } from "node:test";

import { run, scenarios } from "./scenarios.js";

// `require` looks in NODE_PATH, too, where the project's own tests have the packages.
const require = createRequire(import.meta.url);
const servers = process.env.PRESENCE_NATS_URL ?? "nats://127.0.0.1:4222";

for (const name of ["nats", "@nats-io/transport-node"]) {
  const { connect, headers } = require(name);
  const client = {
    connect: (options) => connect({ servers, reconnectTimeWait: 20, maxReconnectAttempts: -1, ...options }),
    headers,
  };
  for (const scenario of Object.keys(scenarios)) {
    test(`${name}: ${scenario}`, { timeout: 120_000 }, () => run(scenario, client));
  }
}
