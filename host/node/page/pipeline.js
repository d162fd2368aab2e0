// The pipeline: each stage with where it comes from, how it fares and what it costs.

import { at, make, remake, say, show } from "/page/dom.js";
import { count, digest, moment, rate, seconds } from "/page/format.js";
import { byLabel } from "/page/series.js";

/// One call in so many is measured.
const SAMPLED = 8;

export class Pipeline {
  #stages = [];
  #key = null;

  constructor(samples) {
    this.samples = samples;
  }

  draw(status, { since, swaps }) {
    const serving = status.serving;
    show(at("pipeline"), Boolean(serving));
    if (!serving) return;
    say(at("generation"), `generation ${serving.generation}, in force since ${moment(swaps.at(-1)?.at ?? status.startedAt)}`);
    const key = JSON.stringify(serving.pipeline.map(({ plugin, version, sha256, role, source }) => [plugin, version, sha256, role, source]));
    if (key !== this.#key) {
      this.#key = key;
      this.#stages = serving.pipeline.map(stage);
      at("stages").replaceChildren(...this.#stages.map((it) => it.element));
    }
    const costs = serving.pipeline.map(({ plugin }) => this.#cost(plugin));
    const most = Math.max(...costs.map((it) => it.share ?? 0), 1e-12);
    serving.pipeline.forEach((it, place) => this.#stages[place].update(it, costs[place], most, since[place]));
    show(at("swaps"), swaps.length > 0);
    const rows = () => swaps.toReversed().map((swap) => {
      const changes = swap.changes.length ? swap.changes.map(change).join("; ") : "configuration or limits";
      return make("tr", {}, make("td", {}, swap.generation), make("td", {}, moment(swap.at)),
        make("td", {}, swap.first ? "the start: " : "", changes));
    });
    remake(at("swaps").querySelector("tbody"), swaps, rows);
  }

  /// What a plugin's calls cost.
  #cost(plugin) {
    const samples = this.samples;
    const [name, labels] = ["presence_plugin_call_seconds", `plugin="${plugin}"`];
    const measured = samples.rate((it) => it[`${name}_count{${labels}}`] ?? null);
    const spent = samples.rate((it) => it[`${name}_sum{${labels}}`] ?? null);
    return {
      calls: measured === null ? null : measured * SAMPLED,
      mean: samples.mean(name, labels),
      slow: samples.quantile(0.99, name, labels),
      share: spent === null ? null : spent * SAMPLED,
      failures: byLabel(samples.now, "presence_plugin_failures_total").get(plugin) ?? null,
    };
  }
}

const change = (it) => `${it.plugin} ${it.what}${it.version ? `, ${it.version}` : ""}${it.sha256 ? ` (${digest(it.sha256)})` : ""}`;

/// A stage's card, and how it is renewed.
function stage(it) {
  const state = make("span", { class: "badge" }, "");
  const figure = () => make("dd", {}, "–");
  const [calls, mean, slow, failures] = [figure(), figure(), figure(), figure()];
  const meter = make("div", { class: "meter", role: "img" }, make("div", { class: "bar" }));
  const since = make("p", { class: "quiet small" }, "");
  const element = make(
    "li",
    { class: "stage", "data-plugin": it.plugin },
    make("div", { class: "row" }, make("span", { class: `role ${it.role}` }, it.role), state),
    make("h3", {}, it.plugin, " ", make("span", { class: "quiet" }, it.version)),
    make("p", { class: "quiet small" }, it.source, " · ", make("code", { title: it.sha256 }, digest(it.sha256))),
    since,
    make(
      "dl",
      {},
      make("div", {}, make("dt", {}, "calls"), calls),
      make("div", {}, make("dt", {}, "mean"), mean),
      make("div", {}, make("dt", {}, "99 of 100"), slow),
      make("div", {}, make("dt", {}, "failed"), failures),
    ),
    meter,
  );
  const update = (it, cost, most, from) => {
    const [kind, words] = it.quarantined ? ["bad", "in quarantine"] : ["good", "in force"];
    state.className = `badge ${kind}`;
    say(state, words);
    say(since, from ? `since generation ${from.generation}, ${moment(from.at)}` : "");
    say(calls, rate(cost.calls));
    say(mean, seconds(cost.mean));
    say(slow, seconds(cost.slow));
    say(failures, count(cost.failures));
    failures.className = cost.failures > 0 ? "wrong" : "";
    const share = cost.share ?? 0;
    meter.firstChild.style.width = `${Math.min(100, (share / most) * 100)}%`;
    meter.setAttribute("aria-label", `${(share * 100).toPrecision(2)} % of a processor`);
    meter.title = `${(share * 100).toPrecision(2)} % of a processor`;
  };
  return { element, update };
}
