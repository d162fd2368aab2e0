// Stands around every function that the host calls. An error that the plugin doesn't catch is
// logged with its type, its message and its place; the host makes it the failure of the call.
// What an engine has and plugins haven't (a clock, random numbers, the network) says so.
import { log } from "presence:plugin/host@API_VERSION";

const MESSAGE_MAX = 500;
const FRAMES_MAX = 3;
let inCall = false;

class Denied extends Error {
  name = "Denied";
}

/** Calls a function, or says what plugins don't have if that is during a call of the host. */
const denied = (what, original) =>
  function (...args) {
    if (inCall) throw new Denied(what);
    return new.target ? Reflect.construct(original, args) : Reflect.apply(original, this, args);
  };

function deny(object, names, what) {
  for (const name of names) {
    const original = object?.[name];
    if (typeof original !== "function") continue;
    const value = denied(what, original);
    Object.defineProperty(object, name, { value, configurable: true, writable: true });
  }
}

const NO_CLOCK = "tried to read the clock: plugins have none; ask the host with now()";
const NO_CHANCE = "tried to get random numbers: plugins have none";
const TheDate = Date;
deny(TheDate, ["now"], NO_CLOCK);
globalThis.Date = new Proxy(TheDate, {
  construct(date, args, target) {
    if (inCall && args.length === 0) throw new Denied(NO_CLOCK);
    return Reflect.construct(date, args, target);
  },
  apply: denied(NO_CLOCK, TheDate),
});
deny(globalThis.performance, ["now"], NO_CLOCK);
deny(Math, ["random"], NO_CHANCE);
deny(globalThis.crypto, ["getRandomValues", "randomUUID"], NO_CHANCE);
deny(globalThis, ["fetch"], "tried to use the network: plugins have none");
deny(globalThis, ["setTimeout", "setInterval"], "tried to wait: plugins can't");

/** What the console prints goes to the host's log. */
for (const [name, level] of Object.entries({
  debug: "debug", log: "info", info: "info", warn: "warn", error: "error", trace: "debug",
})) {
  const original = console[name];
  console[name] = (...args) => {
    if (inCall) log(level, args.map(text).join(" "));
    else original?.apply(console, args);
  };
}

function text(value) {
  if (typeof value === "string") return value;
  if (isError(value)) return said(value);
  try {
    return JSON.stringify(value) ?? String(value);
  } catch {
    return String(value);
  }
}

/** Those that the engine's bindings throw are of another realm. */
function isError(value) {
  return value instanceof Error || (typeof value === "object" && typeof value?.stack === "string");
}

/** An error with its type, its message and its place. */
function said(error) {
  if (!isError(error)) return `threw ${text(error)}`.slice(0, MESSAGE_MAX);
  const message = `${error.name}: ${error.message}`.slice(0, MESSAGE_MAX);
  const places = [];
  for (const frame of String(error.stack).split("\n")) {
    const [, name, line, column] = /^(.*)@build\/bundle\.js:(\d+):(\d+)$/.exec(frame) ?? [];
    const place = line && original(Number(line), Number(column));
    if (place && places.length < FRAMES_MAX) {
      const inner = name.replace(/\/<$/, "");
      places.push(inner ? `${place} (${inner})` : place);
    }
  }
  return places.length ? `${message}, at ${places.join(", from ")}` : message;
}

/** Where a place of the bundle stands in the plugin's own files. None for this file. */
function original(line, column) {
  const { files = [], places = [] } = globalThis.presencePlaces ?? {};
  let found;
  for (const place of places) {
    const [bundleLine, bundleColumn] = place;
    if (bundleLine > line || (bundleLine === line && bundleColumn > column)) break;
    found = place;
  }
  // A line of the bundle without a place of its own is not the plugin's.
  if (!found || found[0] !== line) return undefined;
  return `${files[found[2]]}:${found[3]}`;
}

/** The function of a plugin, as the host calls it. Of one that may refuse, an error does. */
export function guard(plugin, name, mayRefuse) {
  const inner = plugin[name];
  if (typeof inner !== "function") throw new Error(`the plugin doesn't export the function ${name}`);
  return (...args) => {
    inCall = true;
    try {
      const answer = inner(...args);
      if (typeof answer?.then === "function") {
        answer.then(undefined, () => {});
        throw new TypeError(`\`${name}\` is async, and plugins answer at once: leave out \`async\` and \`await\``);
      }
      return answer;
    } catch (error) {
      if (mayRefuse) throw isError(error) ? said(error) : error;
      log("error", said(error));
      throw error;
    } finally {
      inCall = false;
    }
  };
}
