// The plots of the last minutes. Each has its figures beside it as text, which follow the
// pointer or the arrow keys; all of them stand at the same moment.

import uPlot from "/page/uplot.js";

import { make, say } from "/page/dom.js";
import { bytes, count, rate, seconds } from "/page/format.js";
import { byLabel, total } from "/page/series.js";

const metric = (name) => (metrics) => total(metrics, name);
const grown = (name) => (samples, place) => samples.rate(metric(name), place);
const value = (name) => (samples, place) => total(samples.all[place].metrics, name);
const labelled = (name, label) => (samples, place) =>
  samples.rate((metrics) => byLabel(metrics, name).get(label) ?? null, place);
const quantile = (q) => (samples, place) => samples.quantile(q, "presence_decision_seconds", "", place);

/// What is plotted: a title, how its figures are written, and lines with where they come from.
const PLOTS = [
  {
    title: "Online",
    write: count,
    lines: [
      ["users", value("presence_online_users")],
      ["connections", value("presence_connections")],
    ],
  },
  {
    title: "Messages",
    write: rate,
    lines: [
      ["taken in", grown("presence_inputs_total")],
      ["published", grown("presence_published_total")],
      ["corrections", grown("presence_correction_messages_total")],
    ],
  },
  {
    title: "Duration of a decision",
    write: seconds,
    logarithmic: true,
    lines: [
      ["half", quantile(0.5)],
      ["9 of 10", quantile(0.9)],
      ["99 of 100", quantile(0.99)],
    ],
  },
  {
    title: "Queries",
    write: rate,
    lines: [
      ["answered", labelled("presence_questions_total", "answered")],
      ["refused", labelled("presence_questions_total", "refused")],
      ["overloaded", labelled("presence_questions_total", "overloaded")],
    ],
  },
  {
    title: "Not taken",
    write: rate,
    lines: [
      ["dead letters", grown("presence_dead_letters_total")],
      ["dropped", grown("presence_slow_consumer_drops_total")],
      ["too late", grown("presence_stale_inputs_total")],
    ],
  },
  {
    title: "Waiting",
    write: bytes,
    steps: Array.from({ length: 44 }, (_, power) => 2 ** power),
    lines: [
      ["for a shard", value("presence_input_queue_bytes")],
      ["for NATS to acknowledge", value("presence_journal_bytes")],
    ],
  },
];

const HEIGHT = 148;

export class Plots {
  #plots = [];
  #samples;
  #times = [];
  /// What each sample has in each line of each plot: it never changes.
  #values = new WeakMap();

  constructor(place, samples) {
    this.#samples = samples;
    for (const [number, plan] of PLOTS.entries()) {
      const keys = plan.lines.map(([name], line) => {
        const figure = make("span", { class: "figure" }, "–");
        return [make("li", { class: `line-${line}` }, make("span", { class: "swatch" }), name, " ", figure), figure];
      });
      const canvas = make("div", { class: "canvas", tabindex: "0", role: "group" });
      const moment = make("span", { class: "quiet" }, "last 5 minutes");
      const figure = make(
        "figure",
        { class: "plot", "data-plot": plan.title },
        make("figcaption", {}, make("h3", { id: `plot-${number}` }, plan.title), moment),
        make("ul", { class: "keys" }, keys.map(([key]) => key)),
        canvas,
      );
      canvas.setAttribute("aria-label", `${plan.title}: the last five minutes; the arrow keys move along`);
      place.append(figure);
      const plot = { plan, canvas, moment, figures: keys.map(([, figure]) => figure), drawn: null, at: null };
      canvas.addEventListener("keydown", (event) => this.#key(plot, event));
      canvas.addEventListener("blur", () => this.#point(null));
      this.#plots.push(plot);
    }
    new ResizeObserver(() => this.#resize()).observe(place);
  }

  /// Draws what the samples are by now.
  draw() {
    const all = this.#samples.all;
    this.#times = all.map(({ at }) => at / 1000);
    const values = all.map((sample, place) => this.#of(sample, place));
    let first = 0;
    for (const plot of this.#plots) {
      const from = first;
      plot.data = [this.#times, ...plot.plan.lines.map((_, line) => values.map((it) => it[from + line]))];
      first += plot.plan.lines.length;
      if (plot.drawn) plot.drawn.setData(plot.data);
      else if (plot.canvas.clientWidth > 0) plot.drawn = this.#begin(plot);
      this.#figures(plot);
    }
  }

  #of(sample, place) {
    let values = this.#values.get(sample);
    if (!values) {
      values = PLOTS.flatMap(({ lines }) => lines.map(([, of]) => of(this.#samples, place)));
      this.#values.set(sample, values);
    }
    return values;
  }

  /// Draws anew, as in other colours.
  restyle() {
    for (const plot of this.#plots) {
      plot.drawn?.destroy();
      plot.drawn = null;
    }
    this.draw();
  }

  #begin(plot) {
    const colour = (name) => {
      const probe = make("span", { class: `probe ${name}` });
      plot.canvas.append(probe);
      const { color } = getComputedStyle(probe);
      probe.remove();
      return color;
    };
    const faint = (line) => colour(`fill-${line}`);
    const [axis, grid] = [colour("axis"), colour("grid")];
    const font = "11px system-ui, sans-serif";
    const { write, lines, logarithmic, steps } = plot.plan;
    const scale = logarithmic ? { distr: 3, range: decades } : { range: (_, __, high) => [0, high > 0 ? high * 1.12 : 1] };
    const options = {
      width: plot.canvas.clientWidth,
      height: HEIGHT,
      padding: [8, 18, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "plots", setSeries: false }, drag: { x: false, y: false }, y: false, points: { size: 6 } },
      scales: { y: scale },
      axes: [
        { stroke: axis, font, grid: { show: false }, ticks: { show: false }, size: 24, space: 44, incrs: [60, 120, 300], values: clock },
        { stroke: axis, font, grid: { stroke: grid, width: 1 }, ticks: { show: false }, size: 62, space: 34, incrs: steps, splits: logarithmic ? powers : undefined, values: (_, at) => at.map((it) => (it === null ? "" : write(it))) },
      ],
      series: [
        {},
        ...lines.map((_, line) => ({
          stroke: colour(`line-${line}`),
          fill: line === 0 ? faint(line) : undefined,
          width: 1.6,
          points: { show: false },
          spanGaps: false,
        })),
      ],
      hooks: {
        setCursor: [
          (drawn) => {
            plot.at = drawn.cursor.idx ?? null;
            this.#figures(plot);
          },
        ],
      },
    };
    return new uPlot(options, plot.data, plot.canvas);
  }

  #figures(plot) {
    const last = this.#times.length - 1;
    const place = plot.at === null ? last : Math.min(plot.at, last);
    if (place < 0) return;
    plot.figures.forEach((figure, line) => say(figure, plot.plan.write(plot.data[line + 1][place])));
    const when = new Date(this.#times[place] * 1000).toLocaleTimeString("en-GB");
    say(plot.moment, plot.at === null ? "last 5 minutes" : when);
  }

  #key(plot, event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") this.#point(null);
    if (step === undefined || this.#times.length === 0) return;
    event.preventDefault();
    const last = this.#times.length - 1;
    this.#point(Math.max(0, Math.min(last, (plot.at ?? last) + step)));
  }

  /// Has all plots show their figures of a moment; of the newest, if none.
  #point(place) {
    for (const plot of this.#plots) {
      if (!plot.drawn) continue;
      const left = place === null ? -10 : plot.drawn.valToPos(this.#times[place], "x");
      plot.drawn.setCursor({ left, top: place === null ? -10 : 1 }, false);
      plot.at = place;
      this.#figures(plot);
    }
  }

  #resize() {
    for (const plot of this.#plots) {
      const width = plot.canvas.clientWidth;
      if (plot.drawn && width > 0 && width !== plot.drawn.width) plot.drawn.setSize({ width, height: HEIGHT });
      else if (!plot.drawn && width > 0 && plot.data) plot.drawn = this.#begin(plot);
    }
  }
}

/// The powers of ten around what is drawn: from a microsecond to a millisecond, if nothing is.
const decades = (_, low, high) => [10 ** Math.floor(Math.log10(low || 1e-6)), 10 ** Math.ceil(Math.log10(high || 1e-3))];

const powers = (_, __, low, high) => {
  const [first, last] = [Math.round(Math.log10(low)), Math.round(Math.log10(high))];
  return Array.from({ length: last - first + 1 }, (_, power) => Number(`1e${first + power}`));
};

const clock = (_, times) => times.map((s) => new Date(s * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" }));
