// Which of the node's tenants is shown, where it serves several. It stands in the page's address, so
// that a link, a reload and the way back lead to the same one.

import { at, make, say, show } from "/page/dom.js";

/// Set while a page is opened by the picker: the keyboard's focus stays there.
const PICKED = "presence-tenant-picked";

let current = new URLSearchParams(location.search).get("tenant");

/// The name of the one that is shown; null where there is one alone.
export const tenant = () => current;

/// An address of the node, for the tenant that is shown.
export function address(path, parameters = {}) {
  const all = { ...parameters, ...(current === null ? {} : { tenant: current }) };
  const query = Object.entries(all).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
  return query.length ? `${path}?${query.join("&")}` : path;
}

/// Shows another one when it is picked: all of the page begins anew.
export function begin() {
  at("tenants").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(PICKED, "1");
    current = at("tenant").value;
    location.assign(`${address("/")}${location.hash}`);
  });
}

/// The node says which it tells of: the first, where the address names none.
export function tells(name) {
  if (current !== null || name === null) return;
  current = name;
  history.replaceState(null, "", `${address("/")}${location.hash}`);
}

/// The tenants that there are.
export function offer({ tenants }) {
  const select = at("tenant");
  const known = tenants.some(({ name }) => name === current);
  const all = known ? tenants : [{ name: current ?? "", state: "unknown" }, ...tenants];
  const names = [...select.options].map((it) => it.value);
  if (JSON.stringify(names) !== JSON.stringify(all.map(({ name }) => name))) {
    // One that is being picked stays so.
    const picked = names.length ? select.value : current;
    select.replaceChildren(...all.map(({ name }) => make("option", { value: name })));
    select.value = all.some(({ name }) => name === picked) ? picked : current;
  }
  all.forEach(({ name, state }, place) => say(select.options[place], state === "serving" ? name : `${name} (${state})`));
  show(at("tenants"), true);
  if (sessionStorage.getItem(PICKED)) {
    sessionStorage.removeItem(PICKED);
    select.focus();
  }
}
