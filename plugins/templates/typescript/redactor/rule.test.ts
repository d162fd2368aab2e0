import assert from "node:assert/strict";
import { test } from "node:test";
import { parse } from "./rule";

test("what isn't configured is as ever", () => {
  assert.deepEqual(parse("{}"), { contacts: ["device", "location"], others: ["device"] });
  assert.deepEqual(parse('{"others": []}').others, []);
});

test("what is no configuration is refused", () => {
  assert.throws(() => parse('{"contact": []}'), /unknown key `contact`/);
  assert.throws(() => parse('{"others": "device"}'), /must be a list of strings/);
});
