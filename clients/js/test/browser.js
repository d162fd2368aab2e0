// The scenarios in a browser, over NATS WebSocket. The page is served with two queries,
// `nats`, the address of the broker, and `module`, that of the NATS client; it posts a
// JSON object for each scenario and one for the end to `/report`.

import { run, scenarios } from "./scenarios.js";

const asked = new URLSearchParams(location.search);

async function report(line) {
  await fetch("/report", { method: "POST", body: JSON.stringify(line) });
}

async function main() {
  const { connect, headers } = await import(asked.get("module"));
  const client = {
    connect: (options) =>
      connect({ servers: asked.get("nats"), reconnectTimeWait: 20, maxReconnectAttempts: -1, ...options }),
    headers,
  };
  for (const name of Object.keys(scenarios)) {
    try {
      await run(name, client);
      await report({ name, ok: true });
    } catch (error) {
      await report({ name, ok: false, error: `${error?.stack ?? error}` });
    }
  }
}

window.addEventListener("error", (event) => report({ end: true, error: event.message }));
main().then(
  () => report({ end: true }),
  (error) => report({ end: true, error: `${error?.stack ?? error}` }),
);
