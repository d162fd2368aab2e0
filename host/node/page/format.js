// Figures as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/// A count: 1,234 or 12.3K.
export function count(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return value < 100_000 ? whole.format(value) : short.format(value);
}

/// A rate in a second: 0.42/s, 12/s, 3.4K/s.
export function rate(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0/s";
  if (value < 0.01) return "<0.01/s";
  if (value < 10) return `${Number(value.toPrecision(2))}/s`;
  return `${count(value)}/s`;
}

/// A span of time, given in seconds: 120 µs, 3.4 ms, 2 min.
export function seconds(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0 s";
  const digits = (it) => (it < 10 ? it.toFixed(1) : it.toFixed(0));
  if (value < 1e-3) return `${digits(value * 1e6)} µs`;
  if (value < 1) return `${digits(value * 1e3)} ms`;
  if (value < 120) return `${digits(value)} s`;
  if (value < 7_200) return `${Math.floor(value / 60)} min`;
  if (value < 172_800) return `${Math.floor(value / 3_600)} h`;
  return `${Math.floor(value / 86_400)} d`;
}

/// An amount of bytes: 1.5 MiB.
export function bytes(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/// A moment: the time of day, with the date if it was another day.
export function moment(ms) {
  const date = new Date(ms);
  if (Number.isNaN(date.getTime())) return "–";
  const time = date.toLocaleTimeString("en-GB");
  return date.toDateString() === new Date().toDateString() ? time : `${date.toLocaleDateString("en-CA")} ${time}`;
}

/// The beginning of a digest.
export const digest = (sha256) => String(sha256 ?? "").replace(/^sha256:/, "").slice(0, 12);
