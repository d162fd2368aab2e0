// The gap detector alone.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Sources, readHeader } from "../src/sources.js";

const at = (epoch, seq, source = "n/0") => ({ source, epoch, seq });

test("a header is a source, an epoch and a number, or none", () => {
  assert.deepEqual(readHeader("node-1/3 1698000000000 12"), {
    source: "node-1/3",
    epoch: 1698000000000,
    seq: 12,
  });
  for (const wrong of [undefined, null, "", "12", "n/0 1", "n/0 1 x", "n/0 1 2 3", "n/0 -1 2"]) {
    assert.equal(readHeader(wrong), undefined);
  }
});

test("numbers run on for each subject of each source", () => {
  const sources = new Sources();
  assert.equal(sources.hear("a", at(1, 5)), "new");
  assert.equal(sources.hear("a", at(1, 6)), "next");
  assert.equal(sources.hear("a", at(1, 6)), "old");
  assert.equal(sources.hear("a", at(1, 5)), "old");
  assert.equal(sources.hear("b", at(1, 1)), "next");
  assert.equal(sources.hear("b", at(1, 3)), "gap");
  assert.equal(sources.hear("b", at(1, 2)), "old");
  assert.equal(sources.hear("b", at(1, 4)), "next");
  assert.equal(sources.hear("a", at(1, 1, "n/1")), "new");
});

test("a subject not heard of before has numbers missing unless they begin there", () => {
  const sources = new Sources();
  sources.hear("a", at(1, 5));
  assert.equal(sources.hear("b", at(1, 9)), "gap");
  sources.hearBeacon({ source: "n/0", epoch: 2, seqs: { a: 7 } }, () => true);
  assert.equal(sources.hear("b", at(2, 1)), "next");
  assert.equal(sources.hear("a", at(2, 8)), "next");
});

test("a later epoch begins anew, and an earlier one has ended", () => {
  const sources = new Sources();
  sources.hear("a", at(1, 5));
  assert.equal(sources.hear("a", at(2, 1)), "new");
  assert.equal(sources.hear("a", at(1, 6)), "old");
  assert.equal(sources.hear("a", at(2, 2)), "next");
});

test("what an earlier owner of a shard still says is dropped", () => {
  // In a fleet, a source is a shard, whichever node owns it, and each owner has a later epoch.
  const sources = new Sources();
  const fleet = (epoch, seq) => at(epoch, seq, "fleet/3");
  assert.equal(sources.hear("a", fleet(10, 1)), "new");
  assert.equal(sources.hear("a", fleet(10, 2)), "next");
  assert.equal(sources.hear("a", fleet(17, 1)), "new");
  // The old owner wakes up, and says what it was about to say.
  assert.equal(sources.hear("a", fleet(10, 3)), "old");
  sources.hearBeacon({ source: "fleet/3", epoch: 10, seqs: { a: 9 } }, () => true);
  assert.equal(sources.hear("a", fleet(17, 2)), "next");
  // Another shard has epochs of its own.
  assert.equal(sources.hear("a", at(10, 1, "fleet/4")), "new");
});

test("a beacon shows what is missing at the end, on the subjects that are read", () => {
  const sources = new Sources();
  const listens = (subject) => subject === "a";
  const beacon = (epoch, seqs) => sources.hearBeacon({ source: "n/0", epoch, seqs }, listens);
  assert.equal(beacon(1, { a: 3, x: 9 }), "new");
  assert.equal(beacon(1, { a: 3, x: 12 }), "next");
  assert.equal(beacon(1, { a: 4 }), "gap");
  assert.equal(beacon(1, { a: 4 }), "next");
  assert.equal(sources.hear("a", at(1, 5)), "next");
  assert.equal(beacon(1, { a: 4 }), "next");
  assert.equal(beacon(0, { a: 99 }), "next");
  assert.equal(beacon(2, {}), "new");
  assert.equal(sources.hear("a", at(2, 1)), "next");
});

test("only so many sources are remembered", () => {
  const sources = new Sources();
  for (let number = 0; number <= 1024; number++) sources.hear("a", at(1, 1, `n/${number}`));
  assert.equal(sources.hear("a", at(1, 2, "n/1024")), "next");
  assert.equal(sources.hear("a", at(1, 2, "n/0")), "new");
});
