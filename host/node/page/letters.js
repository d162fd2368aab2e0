// Dead letters: how many for each reason, and the last few.

import { at, make, remake, say, show } from "/page/dom.js";
import { count, moment } from "/page/format.js";
import { byLabel, total } from "/page/series.js";

/// The counts, as the metrics have them.
export function counts(samples) {
  const all = [...byLabel(samples.now, "presence_dead_letters_total")].filter(([, value]) => value > 0);
  all.sort((a, b) => b[1] - a[1]);
  const sum = total(samples.now, "presence_dead_letters_total");
  const recent = samples.growth((it) => total(it, "presence_dead_letters_total"));
  const left = total(samples.now, "presence_dead_letters_left_out_total") ?? 0;
  const words = [`${count(sum)} since the start`, `${count(recent)} in the last 5 minutes`];
  if (left > 0) words.push(`${count(left)} not published`);
  say(at("letters-total"), sum === null ? "" : words.join(", "));
  const most = all[0]?.[1] ?? 1;
  remake(at("reasons"), all, () => {
    if (all.length === 0) return [make("li", { class: "quiet empty" }, "None: everything could be processed.")];
    return all.map(([reason, value]) => {
      const bar = make("span", { class: "bar" });
      bar.style.width = `${Math.max(1, (value / most) * 100)}%`;
      return make("li", { "data-reason": reason }, make("span", { class: "name" }, reason), make("span", { class: "track" }, bar), make("span", { class: "figure" }, count(value)));
    });
  });
}

/// The last few, the newest first.
export function last({ letters, names }) {
  remake(at("last-letters").querySelector("tbody"), letters, () =>
    letters.map((it) => {
      const about = [it.user && `user ${it.user}`, it.error].filter(Boolean);
      return make(
        "tr",
        {},
        make("td", { class: "time" }, moment(it.at)),
        make("td", {}, make("code", {}, it.subject)),
        make("td", {}, make("strong", {}, it.reason), about.length ? make("p", { class: "quiet small" }, about.join(": ")) : null),
      );
    }),
  );
  show(at("last-letters"), letters.length > 0);
  const more = names ? "" : " Whom they are about and what was wrong is not shown here.";
  say(at("letters-note"), letters.length ? `presence dlq list and show have them with their content, if a stream keeps them.${more}` : "");
}
