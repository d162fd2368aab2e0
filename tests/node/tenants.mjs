// The page of a node with several tenants, in a real browser.
//
//   node tenants.mjs <path of Chromium> <address of the node> <the token>
//
// The node has the tenants `acme`, with one user online and a plugin store with two revisions, `beta`,
// with two users online and a dead letter, `resting`, which is paused, and one with a long name whose section
// is broken.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const { chromium } = createRequire(import.meta.url)("playwright-core");

const [executablePath, url, token] = process.argv.slice(2);

const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
// A guard against hanging, and no limit of speed.
page.setDefaultTimeout(90_000);
const faults = [];
page.on("pageerror", (error) => faults.push(error.message));

const text = (selector) => page.locator(selector).first().innerText();
const said = (selector, words) => page.locator(selector).first().filter({ hasText: words }).waitFor();
const online = (count) => said('[data-card="Users online"] .value', new RegExp(`^${count}$`));
const shown = () => new URL(page.url()).searchParams.get("tenant");

/// Picks a tenant with the keyboard alone.
async function pick(key) {
  await page.focus("#tenant");
  await page.keyboard.press(key);
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
}

try {
  // The first, where the address names none; and the address names it from then on.
  await page.goto(url);
  await said("#state", "Serving");
  await online(1);
  assert.equal(shown(), "acme");
  assert.match(await page.title(), /^acme · /);
  await page.locator("#reasons .empty").waitFor();
  const names = await page.locator("#tenant option").allInnerTexts();
  assert.deepEqual(names.slice(0, 2), ["acme", "beta"]);
  assert.equal(names[2], "resting (paused)");
  assert.ok(names[3].endsWith(" (refused)"), names[3]);

  await pick("b");
  await online(2);
  assert.equal(shown(), "beta");
  assert.match(await text("#node"), /^beta · /);
  await page.locator('#reasons [data-reason="missing-field"]').waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), "tenant", "the keyboard stays where it was");
  assert.ok(await page.locator("#history").isHidden(), "its pipeline is the folder's");
  // It is remembered by a reload, and the way back leads to the one before.
  await page.reload();
  await online(2);
  assert.equal(shown(), "beta");
  await page.goBack();
  await online(1);
  assert.equal(shown(), "acme");
  console.log("seen: tenants");

  // Without the token, nobody is named, and there is nothing to press.
  await page.goForward();
  await online(2);
  assert.ok(!(await text("#last-letters")).includes("ada"));
  assert.equal(await text("#explain-off"), "This needs the operator’s token.");
  await page.click("#operator");
  await page.fill("#token", token);
  await page.focus("#token");
  await page.keyboard.press("Enter");
  await said("#last-letters", "user ada");
  await page.fill('[name="viewer"]', "22222");
  await page.fill('[name="user"]', "12345");
  await page.keyboard.press("Enter");
  await said(".verdict", "May 22222 see 12345? yes");

  // The token goes along to another tenant: there, the same viewer may not.
  await pick("a");
  await online(1);
  await page.fill('[name="viewer"]', "99999");
  await page.fill('[name="user"]', "12345");
  await page.keyboard.press("Enter");
  await said(".verdict", "May 99999 see 12345? no");
  await page.locator('#revisions [data-revision="2"] .badge').waitFor();
  await page.locator('#revisions [data-revision="1"] button').click();
  await page.click("#rollback-go");
  await page.locator('#revisions [data-revision="3"] .badge').waitFor();
  console.log("seen: operator");

  for (const width of [320, 390, 768]) {
    await page.setViewportSize({ width, height: 780 });
    const widest = await page.evaluate(() => {
      const inScroll = (it) => it.closest(".scroll, .canvas, .skip, .hidden");
      const all = [...document.querySelectorAll("body *")].filter((it) => it.checkVisibility() && !inScroll(it) && it.tagName !== "OPTION");
      return Math.max(document.documentElement.scrollWidth, ...all.map((it) => it.getBoundingClientRect().right));
    });
    assert.ok(widest <= width + 0.5, `${widest} of ${width}`);
    assert.ok(await page.locator("#tenant").isVisible());
  }
  console.log("seen: narrow");

  // What isn't served says why.
  await pick("r");
  await said("#state", "Paused");
  await page.goto(`${url}/?tenant=${encodeURIComponent(names[3].split(" ")[0])}`);
  await said("#state", "Refused");
  await said("#notices", "timeout_ms");
  await page.goto(`${url}/?tenant=nobody`);
  await said("#state", "Unknown");
  await said("#notices", "this node has no tenant `nobody`");
  await pick("b");
  await online(2);
  assert.deepEqual(faults, []);
  console.log("done");
} finally {
  await browser.close();
}
