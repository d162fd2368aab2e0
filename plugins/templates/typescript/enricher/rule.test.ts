import assert from "node:assert/strict";
import { test } from "node:test";
import { kind, parse } from "./rule";

test("the user agent tells what kind of client it is", () => {
  assert.equal(kind("Mozilla/5.0 (iPhone) Mobile/15E148"), "mobile");
  assert.equal(kind("Mozilla/5.0 (X11; Linux x86_64)"), "desktop");
});

test("what is no configuration is refused", () => {
  assert.equal(parse('{"into": "kind"}').into, "kind");
  assert.throws(() => parse('{"in": "kind"}'), /unknown key `in`/);
  assert.throws(() => parse('{"into": 1}'), /must be a string/);
});
