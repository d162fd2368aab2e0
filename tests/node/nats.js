// As the `nats` command does it: node nats.js request SUBJECT BODY
"use strict";

const { connect, StringCodec } = require("nats");

const text = StringCodec();

async function main([command, subject, body]) {
  if (command !== "request") throw new Error(`there is no \`${command}\` here`);
  const nats = await connect({ servers: process.env.PRESENCE_NATS_URL });
  const answer = await nats.request(subject, text.encode(body));
  console.log(text.decode(answer.data));
  await nats.close();
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
