// The reference client of `presence`: what viewers may know of others, kept true by
// the client's rule (docs/use/clients.md). It depends on nothing but the NATS connection
// that it is handed, and is the same in Node and in a browser.

export { PresenceFeed } from "./feed.js";
export { PresenceView } from "./view.js";
export { PresenceChange, PresenceError } from "./events.js";
export { token } from "./token.js";
