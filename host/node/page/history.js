// The history of the plugin store: who changed the pipeline, when and why, and the way back.

import { at, make, remake, say, show } from "/page/dom.js";
import { digest, moment } from "/page/format.js";
import { address } from "/page/tenant.js";

let shown = null;
let newest = 0;
let wanted = 0;

/// `headers` gives those that a request needs.
export function begin(headers) {
  const dialog = at("rollback-dialog");
  dialog.addEventListener("close", async () => {
    if (dialog.returnValue !== "go") return;
    say(at("history-said"), `Revision ${wanted} is being validated…`);
    const answer = await ask("/page/rollback", headers(), { revision: wanted, seen: newest });
    say(at("history-said"), answer.ok ? `Revision ${answer.revision} is written, with the pipeline of revision ${wanted}.` : answer.error);
    at("history-said").className = answer.ok ? "quiet" : "notice bad";
    shown = null;
  });
}

/// Reads the history anew, if another revision is in force than it was read with.
export async function follow(status, headers, isOperator) {
  const store = status.serving?.source === "store" ? status.serving.store : null;
  const alerts = status.serving?.alerts ?? 0;
  show(at("history"), store !== null || alerts > 0);
  if (!store && alerts === 0) return;
  const key = JSON.stringify([store, alerts, isOperator]);
  if (shown === key) return;
  shown = key;
  const answer = await ask("/page/history", headers());
  if (!answer.ok) {
    shown = null;
    say(at("history-said"), answer.error);
    return;
  }
  newest = answer.newest ?? 0;
  const refused = store?.refused && `Revision ${store.refused.revision} is refused: ${store.refused.why}`;
  const folder = "what this node alerted operators to";
  say(at("history-state"), store ? refused || store.away || `revision ${store.revision ?? "–"} is in force` : folder);
  remake(at("revisions"), [answer.revisions, answer.alerts, store?.revision, isOperator], () => {
    const revisions = answer.revisions.map((it) => [it.when ?? Number.MAX_VALUE, row(it, it.revision === store?.revision, isOperator)]);
    const alerts = answer.alerts.map((it) => [it.timestamp, alerted(it)]);
    // The newest first. Sorting keeps the order of what is of one time.
    return [...revisions, ...alerts].sort(([a], [b]) => b - a).map(([, element]) => element);
  });
}

/// An alert, among the revisions.
function alerted(it) {
  const of = it.plugin ?? it.candidate ?? (it.revision ? `revision ${it.revision}` : "");
  const about = [it.plugin && it.digest ? `${it.plugin} ${digest(it.digest)}` : of, it.generation ? `generation ${it.generation}` : ""];
  return make(
    "tr",
    { class: "alert", "data-alert": it.type },
    make("td", {}, "alert"),
    make("td", { class: "time" }, moment(it.timestamp)),
    make("td", {}, make("strong", {}, ALERTS[it.type] ?? it.type), it.why ?? it.error ? make("p", { class: "quiet small" }, it.why ?? it.error) : null),
    make("td", {}, about.filter(Boolean).join(", ")),
    make("td", {}),
  );
}

const ALERTS = {
  quarantine: "in quarantine",
  "quarantine-over": "out of quarantine",
  "revision-refused": "refused",
  "load-refused": "what lies in the folder is refused",
  "canary-aborted": "the canary is aborted",
  "canary-promoted": "the canary is promoted",
  "canary-refused": "started without the canary",
  store: "the plugin store",
};

function row(it, isInForce, isOperator) {
  const back = make("button", { type: "button" }, `Roll back to ${it.revision}`);
  back.addEventListener("click", () => {
    wanted = it.revision;
    say(at("rollback-words"), `The pipeline of revision ${it.revision} becomes the next revision, ${newest + 1}: ${chain(it)}.`);
    at("rollback-dialog").returnValue = "";
    at("rollback-dialog").showModal();
  });
  const offers = isOperator && !it.same && !it.error;
  return make(
    "tr",
    { "data-revision": it.revision },
    make("td", {}, make("strong", {}, it.revision), isInForce ? make("span", { class: "badge good inline" }, "in force") : null),
    make("td", { class: "time" }, it.when ? moment(it.when) : ""),
    make("td", {}, it.error ?? it.why, it.who ? make("p", { class: "quiet small" }, `by ${it.who}`) : null),
    make("td", {}, it.error ? "" : chain(it), it.canary ? make("p", { class: "quiet small" }, `canary: ${it.canary.plugin} ${digest(it.canary.digest)}, ${it.canary.percent} %`) : null),
    make("td", {}, offers ? back : null),
  );
}

const chain = (it) => it.chain.map(({ plugin, digest: of }) => `${plugin} ${digest(of).slice(0, 7)}`).join(" → ");

async function ask(path, headers, body) {
  try {
    const options = body && { method: "POST", body: JSON.stringify(body) };
    const response = await fetch(address(path), { ...options, headers: { "content-type": "application/json", ...headers } });
    const text = await response.text();
    return response.ok ? JSON.parse(text) : { ok: false, error: text.trim() };
  } catch (error) {
    return { ok: false, error: error.message };
  }
}
