import assert from "node:assert/strict";
import { test } from "node:test";
import { isQuiet, parse } from "./rule";

test("the configured status is the quiet one", () => {
  assert.equal(isQuiet(parse("{}"), "quiet"), true);
  assert.equal(isQuiet(parse("{}"), "busy"), false);
  assert.equal(isQuiet(parse('{"status": "busy"}'), "busy"), true);
  assert.equal(isQuiet(parse("{}"), undefined), false);
});

test("what is no configuration is refused", () => {
  assert.throws(() => parse('{"stauts": "busy"}'), /unknown key `stauts`/);
  assert.throws(() => parse('{"status": 1}'), /must be a string/);
});
