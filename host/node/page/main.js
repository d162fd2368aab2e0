// The page of a node, put together: it follows the node's events, and draws each as it comes.

import * as beside from "/page/beside.js";
import { at, say } from "/page/dom.js";
import * as explain from "/page/explain.js";
import * as history from "/page/history.js";
import * as letters from "/page/letters.js";
import { Overview, head, state } from "/page/overview.js";
import { Pipeline } from "/page/pipeline.js";
import { Plots } from "/page/plots.js";
import { Samples } from "/page/series.js";
import { follow } from "/page/stream.js";
import * as tenant from "/page/tenant.js";
import * as theme from "/page/theme.js";
import * as token from "/page/token.js";

const samples = new Samples();
const overview = new Overview(samples);
const pipeline = new Pipeline(samples);
const plots = new Plots(at("plots"), samples);

let paused = false;
let now = null;
let isOperator = false;

function draw() {
  if (paused || !now) return;
  head(now.status);
  overview.draw();
  plots.draw();
  pipeline.draw(now.status, now.seen);
  letters.counts(samples);
  beside.follow(now.status, token.headers(), isOperator);
  history.follow(now.status, token.headers, isOperator);
}

const again = follow(
  () => tenant.address("/page/events", { after: samples.newest }),
  token.headers,
  {
    opened: () => {},
    lost: () => state("lost", "No answer"),
    // What follows is asked without it.
    refused: token.refused,
    hello: (hello) => {
      tenant.tells(hello.tenant);
      for (const sample of hello.samples) samples.push(sample);
      explain.allow(hello.explain);
      token.offer(hello.token, hello.operator);
      isOperator = hello.operator;
    },
    now: (event) => {
      samples.push(event);
      now = event;
      draw();
    },
    letters: letters.last,
    tenants: tenant.offer,
  },
);

token.begin(again);
tenant.begin();
explain.begin(token.headers);
beside.begin(token.headers);
history.begin(token.headers);
theme.begin(() => plots.restyle());
at("pause").addEventListener("click", () => {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", String(paused));
  say(at("pause"), paused ? "Go on" : "Pause");
  draw();
});
