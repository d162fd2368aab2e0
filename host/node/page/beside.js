// A canary or a shadow: how it fares beside the active pipeline, and what it would change. An
// operator promotes or aborts a canary, and ends a shadow.

import { at, make, remake, say, show } from "/page/dom.js";
import { does } from "/page/explain.js";
import { count, digest, moment, seconds } from "/page/format.js";
import { address } from "/page/tenant.js";

/// How often examples are asked for at most.
const EXAMPLES_MS = 2_000;

let candidate = null;
let seen = null;
let wanted = null;
let asked = { key: null, at: 0 };

/// `headers` gives those that a request needs.
export function begin(headers) {
  for (const [id, step] of [["promote", true], ["abort", false]]) {
    at(id).addEventListener("click", () => {
      wanted = step;
      const then = step ? "decides on everyone" : "decides on nobody any more";
      say(at("canary-title"), step ? "Promote?" : candidate ? "Abort?" : "End the shadow?");
      say(at("canary-words"), candidate ? `${candidate.plugin} ${digest(candidate.digest)} ${then}, by the next revision.` : "On this node, nothing is compared any more. Nothing else changes.");
      say(at("canary-go"), step ? "Promote" : candidate ? "Abort" : "End");
      show(at("canary-note"), candidate !== null);
      at("canary-dialog").returnValue = "";
      at("canary-dialog").showModal();
    });
  }
  at("canary-dialog").addEventListener("close", async () => {
    if (at("canary-dialog").returnValue !== "go") return;
    if (!candidate) {
      const answer = await ask("/page/shadow", { method: "POST", body: "{}" }, headers());
      tell(answer.ok ? "The shadow has been ended." : answer.error, answer.ok);
      return;
    }
    tell("The next revision is being validated…", true);
    const body = JSON.stringify({ promote: wanted, seen });
    const answer = await ask("/page/canary", { method: "POST", body }, headers());
    const done = wanted ? "promotes" : "aborts";
    tell(answer.ok ? `Revision ${answer.revision} is written, and ${done} the canary.` : answer.error, answer.ok);
  });
}

function tell(words, isGood) {
  say(at("beside-said"), words);
  at("beside-said").className = isGood ? "quiet" : "notice bad";
}

export function follow(status, headers, isOperator) {
  const serving = status.serving;
  const beside = serving?.beside ?? null;
  const isCanary = beside?.kind === "canary";
  const shadow = beside && !isCanary ? serving.shadow : null;
  const last = !beside && serving?.shadow ? serving.shadow : null;
  show(at("beside"), Boolean(beside || last || at("beside-said").textContent));
  show(at("beside-actions"), Boolean(beside) && isOperator);
  show(at("promote"), isCanary);
  say(at("abort"), isCanary ? "Abort…" : "End…");
  seen = serving?.store?.revision ?? null;
  candidate = isCanary ? serving.store?.canary ?? null : null;
  show(at("beside-figures"), Boolean(beside || last));
  if (!beside && !last) {
    say(at("beside-title"), "Canary");
    say(at("beside-state"), "none runs");
    return;
  }
  const report = (last ?? shadow ?? beside).report;
  const named = isCanary ? candidate : last ?? shadow;
  const name = named ? `${named.plugin} ${digest(named.digest)}` : "";
  say(at("beside-title"), isCanary ? "Canary" : "Shadow");
  say(at("beside-state"), isCanary ? `${name} decides on ${beside.percent} % of the users, as generation ${beside.generation}` : `${name} ${last ? "has ended" : "decides on nobody"}`);
  terms(isCanary ? canary(named) : time(named, last));
  sides(report, isCanary ? beside.calls : null);
  differences(report);
  examples(report, isCanary ? "beside" : "shadow", headers);
}

/// What holds of it, in pairs of a name and words.
function terms(pairs) {
  remake(at("beside-terms"), pairs, () => pairs.map(([name, words]) => make("div", {}, make("dt", {}, name), make("dd", {}, words))));
}

function canary(it) {
  if (!it) return [];
  const left = it.promote_after_ms ? it.started_at + it.promote_after_ms - Date.now() : null;
  const promoted = left === null ? "by an operator" : left > 0 ? `by itself in ${seconds(Math.ceil(left / 1_000))}, if no rule is broken` : "by itself, after 20 calls";
  return [
    ["Began", moment(it.started_at)],
    ["Aborted by itself on", it.abort_on || "nothing"],
    ["Promoted", promoted],
  ];
}

function time(it, isOver) {
  const left = Math.max(0, it.from + it.forMs - Date.now());
  return [
    ["Began", moment(it.from)],
    [isOver ? "Ended" : "Ends", isOver ? `after ${seconds(it.forMs / 1_000)} at most` : `in ${seconds(Math.ceil(left / 1_000))}`],
  ];
}

const micros = (value) => seconds(value === null || value === undefined ? null : value / 1e6);

/// Both pipelines side by side.
function sides(report, calls) {
  show(at("beside-calls"), calls !== null);
  const rows = ["active", "candidate"];
  if (calls) {
    remake(at("beside-calls").querySelector("tbody"), calls, () => rows.map((side) => {
      const { calls: all, failures, p50Micros, p99Micros } = calls[side];
      return row(side, [count(all), count(failures), micros(p50Micros), micros(p99Micros)]);
    }));
  }
  remake(at("beside-compared").querySelector("tbody"), [report.active, report.candidate], () => rows.map((side) => {
    const it = report[side];
    return row(side, [count(it.calls), count(it.failures), count(it.fuelMean), micros(it.p50Micros), micros(it.p99Micros)], it.lastFailure);
  }));
}

function row(side, cells, failure) {
  const first = make("th", { scope: "row" }, side, failure ? make("p", { class: "quiet small" }, failure) : null);
  return make("tr", { "data-side": side }, first, cells.map((it) => make("td", {}, it)));
}

function differences(report) {
  const { compared, different, skipped, unanswered } = report.decisions;
  say(at("beside-decisions"), `Decisions compared: ${count(compared)}, different: ${count(different)}. Skipped for want of time: ${count(skipped)}, for want of an answer of the directory: ${count(unanswered)}.`);
  const kinds = [["lost", "lose sight"], ["gained", "gain sight"], ["otherwise", "are told something else"]];
  remake(at("beside-pairs").querySelector("tbody"), kinds.map(([kind]) => report[kind]), () => kinds.map(([kind, words]) => {
    const { pairs, users, viewers } = report[kind];
    return make("tr", { "data-kind": kind }, make("th", { scope: "row" }, words), [pairs, users, viewers].map((it) => make("td", {}, count(it))));
  }));
}

/// Examples name users, so they are asked for, and not for everyone.
async function examples(report, which, headers) {
  const key = JSON.stringify([which, report.decisions.different, headers]);
  if (key === asked.key || Date.now() - asked.at < EXAMPLES_MS) return;
  asked = { key, at: Date.now() };
  const answer = await ask("/page/beside", {}, headers);
  const all = answer.reports?.[which]?.report ?? answer.reports?.[which] ?? null;
  const told = all?.examples ?? [];
  show(at("beside-examples-head"), told.length > 0);
  remake(at("beside-examples"), told, () => told.map(example));
}

function example(it) {
  const of = (kind, words) => {
    const { viewers, more } = it[kind];
    if (viewers.length === 0) return null;
    return make("p", {}, `${viewers.join(", ")}${more ? ` and ${more} more` : ""} ${words} ${it.userId}`);
  };
  const whys = it.why.map(({ viewerId, active, candidate }) => {
    const side = (name, stage) => stage && make("p", { class: "quiet small" }, `${name}: ${stage.plugin} ${does(stage, viewerId)}`,
      reasons(stage).map((reason) => make("span", {}, `; it says: ${reason}`)));
    return make("div", {}, side("active", active), side("candidate", candidate));
  });
  return make("li", {}, of("lost", "would lose sight of"), of("gained", "would gain sight of"), of("otherwise", "would be told something else of"), whys);
}

const reasons = (stage) => [...(stage.reasons ?? []), ...(stage.viewerReasons ?? [])];

async function ask(path, options, headers) {
  try {
    const response = await fetch(address(path), { ...options, headers: { "content-type": "application/json", ...headers } });
    const text = await response.text();
    return response.ok ? JSON.parse(text) : { ok: false, error: text.trim() };
  } catch (error) {
    return { ok: false, error: error.message };
  }
}
