// Light or dark: as the system says, or as chosen.

import { at, say } from "/page/dom.js";

const KEY = "presence-theme";
const CHOICES = ["system", "light", "dark"];

/// `changed` is called when the colours are others.
export function begin(changed) {
  const apply = (choice) => {
    if (choice === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
    say(at("theme"), `Theme: ${choice}`);
    changed();
  };
  let choice = CHOICES.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "system";
  apply(choice);
  at("theme").addEventListener("click", () => {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
    localStorage.setItem(KEY, choice);
    apply(choice);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}
