// Runs the seed document's JavaScript handlers as they stand.
//
//   node handlers.js <nats url> <seed document>
//
// The code is taken from the document, so that it can't drift from it. One line
// is added: npm's client delivers bytes, so what a handler hands to JSON.parse
// is decoded in the line before. Every call a handler makes is written to
// standard output, one JSON object a line.
"use strict";

const fs = require("node:fs");
const { connect, StringCodec } = require("nats");

const AsyncFunction = (async () => {}).constructor;
const text = StringCodec();

/** The code block under a heading. */
function block(document, heading) {
  const section = document.split(`### ${heading}\n`)[1];
  const code = section?.match(/```javascript\n([\s\S]*?)```/)?.[1];
  if (!code) throw new Error(`the document has no code under "${heading}"`);
  return code.replace(
    /^( *)(const event = JSON\.parse\(msg\.data\);)$/gm,
    '$1Object.defineProperty(msg, "data", { value: decode(msg.data) });\n$1$2',
  );
}

/** Runs code in which these names mean these values. */
function run(code, names) {
  const scope = { decode: (bytes) => text.decode(bytes), ...names };
  return new AsyncFunction(...Object.keys(scope), code)(...Object.values(scope));
}

function say(call, ...args) {
  process.stdout.write(JSON.stringify({ call, args }) + "\n");
}

/** A function that only says that it was called. */
const saying = (name) => (...args) => say(name, ...args);

async function main(url, path) {
  const nats = await connect({ servers: url });
  const document = fs.readFileSync(path, "utf8");

  const all = block(document, "Subscribe to All Presence Events");
  run(all, { nats, console: { log: saying("console.log") } });

  // The block shows two loops, neither of which ends: they are two handlers.
  const [online, offline] = block(document, "Subscribe to Specific Events").split(
    "// Offline events only\n",
  );
  run(online, { nats, handleUserOnline: saying("handleUserOnline") });
  run(offline, { nats, handleUserOffline: saying("handleUserOffline") });

  // Two fragments that work on an event, for every online event.
  const contactFilter = block(document, "Contact-Based Filtering");
  const groupFilter = block(document, "Group-Based Filtering") + "\nreturn filteredEvent;";
  const contacts = { 12345: ["67890", "11111"] };
  (async () => {
    for await (const msg of nats.subscribe("presence.events.user_online")) {
      const event = JSON.parse(text.decode(msg.data));
      await run(contactFilter, {
        event,
        // What it publishes is said, so that it isn't taken for the host's.
        nats: { publish: (subject, body) => say("publish", subject, JSON.parse(body)) },
        getContactsForUser: async (user) =>
          (contacts[user] ?? []).map((contactId) => ({ contactId })),
      });
      const filtered = await run(groupFilter, {
        event,
        getSharedGroups: async () => ["team-a"],
        getGroupMembers: async () => ["12345", "22222"],
      });
      say("groups", filtered);
    }
  })();

  // What handles an invalid event, for everything on a subject of the test's own.
  const guarded = block(document, "Invalid Event Format");
  (async () => {
    for await (const msg of nats.subscribe("test.handle")) {
      const handleEvent = async (event) => say("handleEvent", event);
      const logger = { error: (what, error) => say("logger.error", what, String(error)) };
      await run(guarded, { msg, handleEvent, logger });
    }
  })();

  // "Publish Events" publishes as an application does, when it is asked to.
  const publish = block(document, "Publish Events");
  const asked = nats.subscribe("test.publish");
  await nats.flush();
  say("ready");
  for await (const msg of asked) {
    await run(publish, { nats });
    await nats.flush();
    msg.respond();
  }
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
