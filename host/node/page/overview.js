// The figures at the top, and what needs attention.

import { at, make, remake, say, show, visible } from "/page/dom.js";
import { count, moment, rate, seconds } from "/page/format.js";
import { byLabel, total } from "/page/series.js";

/// The figures: a title, the metric that a figure is of, and what is said below it.
const CARDS = [
  {
    title: "Users online",
    value: ({ now }) => count(total(now, "presence_online_users")),
    below: ({ now }) => {
      const [users, connections] = [total(now, "presence_online_users"), total(now, "presence_connections")];
      return users > 0 ? `${(connections / users).toFixed(1)} connections each` : "nobody";
    },
  },
  {
    title: "Connections",
    value: ({ now }) => count(total(now, "presence_connections")),
    below: (samples) => `${rate(kinds(samples, "heartbeat"))} heartbeats`,
  },
  {
    title: "Taken in",
    value: (samples) => rate(samples.rate((it) => total(it, "presence_inputs_total"))),
    below: ({ now }) => `${count(total(now, "presence_inputs_total"))} in all`,
  },
  {
    title: "Published",
    value: (samples) => rate(samples.rate((it) => total(it, "presence_published_total"))),
    below: ({ now }) => `${count(total(now, "presence_published_total"))} in all`,
  },
  {
    title: "A decision takes",
    value: (samples) => seconds(samples.quantile(0.99, "presence_decision_seconds")),
    below: (samples) => `99 of 100; half ${seconds(samples.quantile(0.5, "presence_decision_seconds"))}`,
  },
  {
    title: "Waiting for a decision",
    value: ({ now }) => count((total(now, "presence_pending_decisions") ?? 0) + (total(now, "presence_correction_backlog_users") ?? 0)),
    below: ({ now }) =>
      `${count(total(now, "presence_pending_decisions"))} pending, ${count(total(now, "presence_correction_backlog_users"))} to correct`,
  },
];

const kinds = (samples, kind) => samples.rate((it) => byLabel(it, "presence_inputs_total").get(kind) ?? null);

export class Overview {
  #cards;

  constructor(samples) {
    this.samples = samples;
    this.#cards = CARDS.map((card) => {
      const [value, below] = [make("p", { class: "value" }, "–"), make("p", { class: "quiet" }, "")];
      at("cards").append(make("article", { class: "card", "data-card": card.title }, make("h3", {}, card.title), value, below));
      return { ...card, value: [card.value, value], below: [card.below, below] };
    });
  }

  draw() {
    const serves = this.samples.now.presence_online_users !== undefined;
    for (const { value, below } of this.#cards) {
      say(value[1], serves ? value[0](this.samples) : "–");
      say(below[1], serves ? below[0](this.samples) : "");
    }
  }
}

/// What a tenant is that isn't served.
const IDLE = {
  paused: ["waits", "Paused"],
  refused: ["bad", "Refused"],
  unknown: ["bad", "Unknown"],
};

/// The node's name and state, and everything that is not as it should be.
export function head(status) {
  const tenant = status.tenant;
  const name = tenant ? `${tenant.name} · ${status.node}` : status.node;
  document.title = `${visible(name)} · presence`;
  const up = seconds((Date.now() - status.startedAt) / 1000);
  say(at("node"), `${name} · version ${status.version} · up ${up}`);
  const serving = status.serving;
  const is = status.ready ? "good" : serving ? "bad" : "waits";
  const words = { good: "Serving", bad: "Not ready", waits: "Waiting" }[is];
  state(...(IDLE[tenant?.state] ?? [is, words]));

  const notices = [];
  if (tenant?.notTaken) notices.push(["warn", `Its section is not taken, and it goes on as it was: ${tenant.notTaken}`]);
  for (const reason of status.reasons) notices.push(["bad", status.ready ? reason : `Not ready: ${reason}`]);
  for (const stage of serving?.pipeline ?? []) {
    // One that may not run is among the reasons.
    if (stage.quarantined && !stage.withdrawn) notices.push(["bad", quarantine(stage)]);
  }
  for (const it of serving?.notInForce ?? []) {
    notices.push(["warn", `The ${it.what} on disk is not in force, since ${moment(it.since)}: ${it.why}`]);
  }
  if (serving?.restartNeeded?.length) {
    notices.push(["warn", `A restart is needed for what has changed in: ${serving.restartNeeded.join(", ")}`]);
  }
  if (status.nats?.forbidden.length && status.ready) {
    notices.push(["warn", `NATS forbids: ${status.nats.forbidden.join(", ")}`]);
  }
  show(at("notices"), notices.length > 0);
  remake(at("notices"), notices, () => notices.map(([kind, text]) => make("p", { class: `notice ${kind}` }, text)));
  const state_ = serving ? (serving.state ? "state is kept" : "no state is kept over a restart") : "";
  const parts = [status.nats && `NATS ${status.nats.servers}`, serving && `directory ${serving.directory}`, state_,
    serving && `${serving.workers} workers, ${serving.shards} shards`, `process ${status.process}`];
  say(at("foot"), parts.filter(Boolean).join(" · "));
}

function quarantine(stage) {
  const then = stage.onFailure === "last-good" ? "the version before it decides, if there is one" : "it stays closed: nobody new is told";
  return `${stage.plugin} ${stage.version} is in quarantine: ${then}`;
}

/// What stands in the header of the node's state.
export function state(kind, words) {
  at("state").className = `pill ${kind}`;
  say(at("state").querySelector(".words"), words);
}
