// The seed document's contact filter in Node, with npm's client.
//
//   node contender.js <nats url> <root of the subjects> <directory.json>
"use strict";

const fs = require("node:fs");
const { connect, StringCodec } = require("nats");

async function main(url, root, path) {
  const nats = await connect({ servers: url });
  const text = StringCodec();
  const directory = JSON.parse(fs.readFileSync(path, "utf8"));
  const table = new Map(
    Object.entries(directory.contacts).map(([user, contacts]) => [
      user,
      contacts.map((contactId) => ({ contactId })),
    ]),
  );
  const getContactsForUser = async (userId) => table.get(userId) ?? [];

  for (const kind of ["user_online", "user_offline"]) {
    const sub = nats.subscribe(`${root}.events.${kind}`);
    (async () => {
      for await (const msg of sub) {
        const event = JSON.parse(text.decode(msg.data));
        const contacts = await getContactsForUser(event.userId);
        const filteredEvent = {
          ...event,
          visibleTo: contacts.map((c) => c.contactId),
        };
        await nats.publish(`${root}.filtered.${kind}`, JSON.stringify(filteredEvent));
      }
    })();
  }
  await nats.flush();
  console.log("ready");
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
