// A canary and a shadow on the node's page, in a real browser.
//
//   node canary.mjs <path of Chromium> <address of the node> <the token> [<folder>]
//
// The node has a canary by which 12345 would be hidden from two viewers and shown to another,
// and compares what both would decide. The script says what it has seen (`seen: …`), and what it
// wants done next (`do: shadow`, `do: garbage`). With a folder, it leaves pictures there.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const { chromium } = createRequire(import.meta.url)("playwright-core");

const [executablePath, url, token, pictures] = process.argv.slice(2);

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
const status = async () => (await (await fetch(`${url}/status`)).json()).serving;

async function picture(name) {
  if (pictures) await page.locator("#beside").screenshot({ path: `${pictures}/${name}.png` });
}

try {
  await page.goto(url);
  await page.getByText("decides on 45.07 % of the users").waitFor();
  assert.equal(await text("#beside-title"), "Canary");
  const terms = await text("#beside-terms");
  for (const words of ["errors>50%", "by itself in"]) assert.ok(terms.includes(words), `${words}: ${terms}`);
  // What it shows is what the node says elsewhere.
  const lost = page.locator('#beside-pairs [data-kind="lost"] td').first();
  await lost.filter({ hasText: /^2$/ }).waitFor();
  const { report, calls } = (await status()).beside;
  assert.equal(report.lost.pairs, 2);
  assert.equal(await text('#beside-pairs [data-kind="gained"] td'), String(report.gained.pairs));
  const decided = page.locator('#beside-calls [data-side="candidate"] td').first();
  await decided.filter({ hasText: new RegExp(`^${calls.candidate.calls}$`) }).waitFor();
  console.log("seen: figures");
  // Without the token there are no names, and nothing to press.
  assert.ok(!(await page.locator("#beside-actions").isVisible()));
  assert.equal(await page.locator("#beside-examples li").count(), 0);
  await page.click("#operator");
  await page.fill("#token", token);
  await page.focus("#token");
  await page.keyboard.press("Enter");
  await page.locator("#promote").waitFor();
  const example = page.locator("#beside-examples li").first();
  await example.waitFor();
  const words = await example.innerText();
  for (const part of ["would lose sight of 12345", "22222 would gain sight of 12345", "contacts"]) assert.ok(words.includes(part), `${part}: ${words}`);
  console.log("seen: examples");
  await picture("page-canary");

  // By the keyboard alone.
  await page.focus("#abort");
  await page.keyboard.press("Enter");
  await page.getByText("decides on nobody any more").waitFor();
  await page.keyboard.press("Escape");
  assert.equal((await status()).beside.kind, "canary");
  await page.click("#abort");
  await page.click("#canary-go");
  await page.getByText("Revision 3 is written, and aborts the canary.").waitFor();
  await page.locator('#revisions [data-revision="3"]', { hasText: "abort the canary" }).waitFor();
  assert.equal((await status()).beside, null);
  console.log("do: shadow");
  await page.locator("#beside-title", { hasText: "Shadow" }).waitFor();
  await page.locator("#beside-terms", { hasText: "Ends" }).waitFor();
  assert.ok(!(await page.locator("#promote").isVisible()), "a shadow is for comparing");
  await page.click("#abort");
  await page.getByText("nothing is compared any more").waitFor();
  await page.click("#canary-go");
  await page.getByText("The shadow has been ended.").waitFor();
  await page.locator("#beside-state", { hasText: "has ended" }).waitFor();
  console.log("do: garbage");
  const alert = page.locator('#revisions [data-alert="revision-refused"]');
  await alert.waitFor();
  assert.match(await alert.innerText(), /can't be read/);
  assert.match(await text("#history-state"), /^Revision 99 is refused/);
  // The way back leads past it.
  await page.locator('#revisions [data-revision="3"]').waitFor();
  assert.deepEqual(faults, []);
  console.log("done");
} finally {
  await browser.close();
}
