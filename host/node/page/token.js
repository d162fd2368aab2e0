// The operator's token, which is kept in this tab alone.

import { at, say, show } from "/page/dom.js";

const KEY = "presence-token";

export const token = () => sessionStorage.getItem(KEY) ?? "";

/// The headers that say it.
export const headers = () => (token() ? { authorization: `Bearer ${token()}` } : {});

/// `changed` is called when it is another one.
export function begin(changed) {
  const dialog = at("token-dialog");
  at("operator").addEventListener("click", () => {
    at("token").value = token();
    say(at("token-wrong"), "");
    dialog.returnValue = "";
    dialog.showModal();
  });
  // Enter is for using it, not for the first button.
  at("token").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    dialog.close("use");
  });
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "use") sessionStorage.setItem(KEY, at("token").value.trim());
    if (dialog.returnValue === "forget") sessionStorage.removeItem(KEY);
    at("token").value = "";
    if (dialog.returnValue === "use" || dialog.returnValue === "forget") changed();
  });
}

/// The node doesn't take it.
export function refused() {
  sessionStorage.removeItem(KEY);
  say(at("token-wrong"), "That is not the token of this node.");
  if (!at("token-dialog").open) at("token-dialog").showModal();
}

/// Whether there is a use for one, and whether one is in use.
export function offer(is, used) {
  show(at("operator"), is);
  say(at("operator"), used ? "Operator ✓" : "Operator…");
}
