// An operator rolls the pipeline back with the node's page, in a real browser.
//
//   node rollback.mjs <path of Chromium> <address of the node> <the token>
//
// The node follows a plugin store with two revisions of different pipelines.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const { chromium } = createRequire(import.meta.url)("playwright-core");

const [executablePath, url, token] = process.argv.slice(2);

const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"],
});
const page = await browser.newPage();
// A guard against hanging, and no limit of speed.
page.setDefaultTimeout(90_000);
const faults = [];
page.on("pageerror", (error) => faults.push(error.message));

try {
  await page.goto(url);
  await page.locator('#revisions [data-revision="2"] .badge').waitFor();
  assert.equal(await page.locator("#history-state").innerText(), "revision 2 is in force");
  // Whoever has no token only reads.
  assert.equal(await page.locator("#revisions button").count(), 0);

  await page.click("#operator");
  await page.keyboard.type("not the token of this node");
  await page.keyboard.press("Enter");
  await page.getByText("That is not the token of this node.").waitFor();
  await page.fill("#token", token);
  await page.focus("#token");
  await page.keyboard.press("Enter");
  const back = page.locator('#revisions [data-revision="1"] button');
  await back.waitFor();
  assert.equal(await page.locator("#revisions button").count(), 1, "the newest is what there is");

  // One who thinks better of it.
  await back.click();
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("#history-state").innerText(), "revision 2 is in force");
  await back.click();
  await page.click("#rollback-go");
  await page.locator('#revisions [data-revision="3"] .badge').waitFor();
  assert.match(await page.locator('#revisions [data-revision="3"]').innerText(), /rollback to revision 1/);
  assert.match(await page.locator("#history-said").innerText(), /^Revision 3 is written/);
  assert.deepEqual(faults, []);
  console.log("done");
} finally {
  await browser.close();
}
