// "Why can't A see B?": asked of the node, which answers as it answers `presence explain`.

import { at, make, show } from "/page/dom.js";
import { moment } from "/page/format.js";
import { address } from "/page/tenant.js";

const OFF = {
  off: "Explanations are off. Set enabled = true in [explain] of the configuration; it takes effect at once.",
  token: "This needs the operator’s token.",
};

/// `headers` gives those that a request needs.
export function begin(headers) {
  at("explain-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const question = { viewerId: form.get("viewer"), userId: form.get("user") };
    const button = event.target.querySelector("button");
    button.disabled = true;
    try {
      const response = await fetch(address("/page/explain"), {
        method: "POST",
        headers: { "content-type": "application/json", ...headers() },
        body: JSON.stringify(question),
      });
      const text = await response.text();
      let answer = null;
      try {
        answer = JSON.parse(text);
      } catch {
        throw new Error(text.trim() || `status ${response.status}`);
      }
      if (!response.ok || answer.stages === undefined) throw new Error(answer.error ?? text);
      at("explanation").replaceChildren(...told(answer));
    } catch (error) {
      at("explanation").replaceChildren(make("p", { class: "notice bad" }, error.message));
    } finally {
      button.disabled = false;
    }
  });
}

/// Whether it may be asked: `on`, `off`, or `token`.
export function allow(which) {
  show(at("explain-form"), which === "on");
  show(at("explain-off"), which !== "on");
  at("explain-off").textContent = OFF[which] ?? "";
}

/// An explanation as elements.
function told(answer) {
  const { viewerId: viewer, userId: user, outcome, event, stages } = answer;
  const [kind, short] = verdict(outcome);
  const steps = stages.map((stage) => {
    const reasons = [
      ...(stage.reasons ?? []).map((it) => [user, it]),
      ...(stage.viewerReasons ?? []).map((it) => [viewer, it]),
    ];
    return make(
      "li",
      { class: `turn ${stage.turn}` },
      make("p", {}, make("strong", {}, stage.plugin), " ", make("span", { class: "quiet" }, `${stage.version}, ${stage.role}${stage.standsIn ? ", the last good version" : ""}`), " ", does(stage, viewer)),
      reasons.map(([whom, reason]) => make("p", { class: "quiet small" }, `says of ${whom}: ${reason}`)),
    );
  });
  return [
    make("p", { class: `verdict ${kind}` }, `May ${viewer} see ${user}? `, make("strong", {}, short)),
    make("p", { class: "quiet" }, basis(event, user), ` Generation ${answer.generation}.`),
    make("ol", { class: "turns" }, steps),
    make("p", {}, after(outcome, viewer, user)),
  ];
}

function verdict({ maySee, standing }) {
  if (standing === "pending") return ["warn", "not decided"];
  const more = standing === "correcting" ? ", and will be told shortly" : "";
  return maySee ? ["good", `yes${more}`] : ["bad", `no${more}`];
}

function basis(event, user) {
  if (event.basis === "hypothetical") return `Nothing is known about ${user}: the rules were run as if ${user} came online now.`;
  const since = moment(event.timestamp);
  if (event.type === "user_offline") return `${user} is offline, since ${since}: it is about who may see when ${user} was last seen.`;
  return `${user} is online, since ${since}.`;
}

/// What a stage does for a viewer.
export function does(stage, viewer) {
  const redacts = stage.role === "redactor";
  return {
    admitted: `admits ${viewer}`,
    removed: `removes ${viewer}`,
    kept: `keeps ${viewer}`,
    absent: redacts ? `shows nothing to ${viewer}, who was not admitted` : `does not admit ${viewer}`,
    failed: `failed: ${stage.failure ?? ""}`,
    "not-reached": "was not asked, because a stage before it failed",
  }[stage.turn] ?? "changes metadata only";
}

function after(outcome, viewer, user) {
  const told = `${viewer} has ${outcome.told ? "" : "not "}been told that ${user} is online.`;
  const keys = outcome.rendition?.keys ?? [];
  const seen = outcome.rendition?.lastSeen ? "and may know" : "and may not know";
  const shown = outcome.rendition ? ` ${viewer} gets ${keys.join(", ") || "no metadata"}, ${seen} when ${user} was last seen.` : "";
  const why = outcome.why ? ` Why: ${outcome.why}.` : "";
  const retry = outcome.standing === "pending" && outcome.retryAt ? ` It is decided again at ${moment(outcome.retryAt)}.` : "";
  return told + retry + shown + why;
}
