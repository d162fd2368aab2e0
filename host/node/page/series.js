// Samples of the metrics, one a second, and what is computed from them. A sample is an object
// of the lines of /metrics: `presence_inputs_total{kind="connect"}` and its value.

/// How many samples are kept.
const KEPT = 300;

/// Over how many seconds a rate is taken.
const WINDOW_S = 10;

export class Samples {
  #all = [];

  /// The time of the newest, in milliseconds; 0 if there is none.
  get newest() {
    return this.#all.at(-1)?.at ?? 0;
  }

  get now() {
    return this.#all.at(-1)?.metrics ?? {};
  }

  get all() {
    return this.#all;
  }

  /// Takes a sample that is newer than all others. One of a node that has started anew
  /// begins from nothing.
  push({ at, metrics }) {
    if (at <= this.newest) return;
    const start = "process_start_time_seconds";
    const last = this.#all.at(-1);
    if (last && metrics[start] !== undefined && last.metrics[start] !== metrics[start]) this.#all = [];
    this.#all.push({ at, metrics });
    if (this.#all.length > KEPT) this.#all.shift();
  }

  /// The sample that a rate at the given place is taken from.
  #before(place) {
    const at = this.#all[place].at - WINDOW_S * 1000;
    let first = place;
    while (first > 0 && this.#all[first - 1].at >= at) first -= 1;
    return this.#all[first];
  }

  /// What a function of the metrics grew by in a second, up to the given place.
  rate(of, place = this.#all.length - 1) {
    if (place < 1) return null;
    const [before, after] = [this.#before(place), this.#all[place]];
    const s = (after.at - before.at) / 1000;
    const [from, to] = [of(before.metrics), of(after.metrics)];
    if (s <= 0 || from === null || to === null) return null;
    return Math.max(0, to - from) / s;
  }

  /// What a function of the metrics grew by over all that is kept.
  growth(of) {
    if (this.#all.length < 2) return 0;
    return Math.max(0, (of(this.now) ?? 0) - (of(this.#all[0].metrics) ?? 0));
  }

  /// The quantile of a histogram over the window, by linear interpolation in its bucket, as
  /// Prometheus does it; null if nothing was counted.
  quantile(q, name, labels = "", place = this.#all.length - 1) {
    if (place < 1) return null;
    const [before, after] = [this.#before(place).metrics, this.#all[place].metrics];
    const found = buckets(after, name, labels);
    // Of what wasn't there, nobody knows how much of it is new.
    if (found.some(([, , key]) => before[key] === undefined)) return null;
    const counts = found.map(([le, count, key]) => [le, count - before[key]]);
    const total = counts.at(-1)?.[1] ?? 0;
    if (total <= 0) return null;
    const rank = q * total;
    let [below, seen] = [0, 0];
    for (const [le, count] of counts) {
      if (count >= rank) {
        if (le === Infinity) return below;
        return below + (le - below) * ((rank - seen) / Math.max(count - seen, 1e-9));
      }
      [below, seen] = [le, count];
    }
    return below;
  }

  /// The mean of a histogram over the window; null if nothing was counted.
  mean(name, labels = "", place = this.#all.length - 1) {
    const of = (part) => (metrics) => metrics[`${name}_${part}${labels && `{${labels}}`}`] ?? null;
    const [sum, count] = [this.rate(of("sum"), place), this.rate(of("count"), place)];
    return count ? sum / count : null;
  }
}

/// The buckets of a histogram: bound, count and key.
function buckets(metrics, name, labels) {
  const prefix = `${name}_bucket{${labels && `${labels},`}le="`;
  const found = [];
  for (const [key, count] of Object.entries(metrics)) {
    if (!key.startsWith(prefix)) continue;
    const le = key.slice(prefix.length, -2);
    found.push([le === "+Inf" ? Infinity : Number(le), count, key]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}

/// The sum of a metric's samples; null if there is none.
export function total(metrics, name) {
  let sum = null;
  for (const [key, value] of Object.entries(metrics)) {
    if (key === name || key.startsWith(`${name}{`)) sum = (sum ?? 0) + value;
  }
  return sum;
}

/// A metric's samples by the value of its label.
export function byLabel(metrics, name) {
  const found = new Map();
  for (const [key, value] of Object.entries(metrics)) {
    if (!key.startsWith(`${name}{`)) continue;
    const label = key.slice(name.length + 1, -1).match(/^[a-z_]+="(.*)"$/);
    if (label) found.set(label[1], value);
  }
  return found;
}
