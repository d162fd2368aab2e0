// The node's page in a real browser, held against what the node says elsewhere.
//
//   node page.mjs <path of Chromium> <address of the node>
//
// It writes to standard output what it has seen (`seen: …`), so that the test that waits for it
// knows that it goes on, and what it wants done next (`do: swap`, `do: stop`, `do: start`). Then it waits until
// the page shows that this was done. It ends with `done`.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const { chromium } = createRequire(import.meta.url)("playwright-core");

const [executablePath, url] = process.argv.slice(2);

/// How long anything is waited for: a guard against hanging, and no limit of speed.
const GUARD_MS = 90_000;

/// The ids with which the node was given a dead letter and is asked for an explanation.
const SCRIPT = "<img src=x onerror=window.hacked=1>";

const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"],
});
const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
context.setDefaultTimeout(GUARD_MS);
const page = await context.newPage();
const [asked, faults] = [[], []];
page.on("request", (request) => asked.push(request.url()));
page.on("pageerror", (error) => faults.push(error.message));
page.on("console", (message) => message.type() === "error" && faults.push(message.text()));

async function until(what, probe) {
  const begin = Date.now();
  let last = null;
  while (Date.now() - begin < GUARD_MS) {
    try {
      return await probe();
    } catch (error) {
      last = error;
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`waited for ${what}: ${last?.message}`);
}

async function metrics() {
  const text = await (await fetch(`${url}/metrics`)).text();
  const samples = text.split("\n").filter((line) => line && !line.startsWith("#"));
  return new Map(samples.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]));
}

const text = (selector) => page.locator(selector).first().innerText();
const focused = () => page.evaluate(() => document.activeElement?.id || document.activeElement?.className || document.activeElement?.tagName);

async function isServing() {
  await until("the page to say that the node serves", async () => assert.equal(await text("#state"), "Serving"));
}

async function showsWhatTheMetricsSay() {
  for (const [card, metric] of [["Users online", "presence_online_users"], ["Connections", "presence_connections"]]) {
    await until(card, async () => {
      const shown = await text(`[data-card="${card}"] .value`);
      assert.equal(Number(shown.replaceAll(",", "")), (await metrics()).get(metric));
    });
  }
  await until("dead letters by reason", async () => {
    const rows = await page.locator("#reasons [data-reason]").all();
    const shown = await Promise.all(rows.map(async (row) => [await row.getAttribute("data-reason"), Number(await row.locator(".figure").innerText())]));
    const said = [...(await metrics())].filter(([name, value]) => name.startsWith("presence_dead_letters_total{") && value > 0);
    const counted = said.map(([name, value]) => [name.match(/reason="(.*)"/)[1], value]);
    assert.ok(counted.length > 0);
    assert.deepEqual(shown.sort(), counted.sort());
  });
  const { serving } = await (await fetch(`${url}/status`)).json();
  const stages = await page.locator(".stage h3").allInnerTexts();
  assert.deepEqual(stages, serving.pipeline.map(({ plugin, version }) => `${plugin} ${version}`));
  assert.match(await text("#generation"), new RegExp(`^generation ${serving.generation},`));
  // A plot's last figure is the metric's as well.
  await until("the plot of users", async () => {
    const shown = await text('[data-plot="Online"] .line-0 .figure');
    assert.equal(Number(shown), (await metrics()).get("presence_online_users"));
  });
  assert.equal(await page.locator("canvas").count(), 6);
}

async function keepsTextFromElsewhereText() {
  await until("the dead letter of the script", async () => assert.ok((await text("#last-letters")).includes(SCRIPT)));
  await page.fill('[name="viewer"]', SCRIPT);
  await page.fill('[name="user"]', `${SCRIPT}\u202e`);
  await page.click("#explain-form button");
  await until("an explanation", async () => assert.ok((await text("#explanation")).includes(SCRIPT)));
  // What would turn the text around is seen.
  assert.ok((await text("#explanation")).includes("\\u{202e}"));
  assert.equal(await page.locator("img").count(), 0);
  assert.equal(await page.evaluate(() => window.hacked), undefined);
}

async function runsNoOtherScript() {
  const ran = await page.evaluate(() => {
    const script = document.createElement("script");
    script.textContent = "window.injected = 1";
    document.body.append(script);
    const button = document.createElement("button");
    button.setAttribute("onclick", "window.injected = 2");
    document.body.append(button);
    button.click();
    button.remove();
    return window.injected;
  });
  assert.equal(ran, undefined);
  const left = await page.evaluate(() => fetch("http://127.0.0.1:9/").then(() => "sent", () => "refused"));
  assert.equal(left, "refused");
  // These two were asked for by this test, and refused by the policy.
  const policy = /Content Security Policy|violates the following|Failed to load resource|Refused to/;
  assert.deepEqual(faults.filter((fault) => !policy.test(fault)), []);
  faults.length = 0;
}

async function canBeUsedWithTheKeyboardAlone() {
  await page.goto(url);
  await isServing();
  await page.keyboard.press("Tab");
  assert.equal(await focused(), "skip");
  await page.keyboard.press("Enter");
  assert.equal(await focused(), "overview");
  await page.keyboard.press("Tab");
  assert.equal(await focused(), "canvas");
  const moment = () => text('[data-plot="Online"] figcaption .quiet');
  assert.equal(await moment(), "last 5 minutes");
  await page.keyboard.press("ArrowLeft");
  assert.match(await moment(), /^\d\d:\d\d:\d\d$/);
  await page.keyboard.press("Escape");
  assert.equal(await moment(), "last 5 minutes");
  for (let tabs = 0; (await page.evaluate(() => document.activeElement.name)) !== "viewer"; tabs += 1) {
    assert.ok(tabs < 40, "the form can't be reached");
    await page.keyboard.press("Tab");
  }
  await page.keyboard.type("11111");
  await page.keyboard.press("Tab");
  await page.keyboard.type("12345");
  await page.keyboard.press("Enter");
  await until("the verdict", async () => assert.match(await text(".verdict"), /^May 11111 see 12345\? no/));
  assert.match(await text(".turn.removed"), /blocklist/);

  await page.focus("#pause");
  await page.keyboard.press("Enter");
  assert.equal(await page.getAttribute("#pause", "aria-pressed"), "true");
  await page.keyboard.press("Enter");
  await page.focus("#theme");
  await page.keyboard.press("Enter");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
  await page.keyboard.press("Enter");
}

/// Every text that is seen is told from what is behind it (WCAG AA: 4.5 to 1).
async function canBeRead() {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    const faint = await page.evaluate(() => {
      const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
      const channels = (colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) {
          canvas.fillStyle = colour;
          canvas.fillRect(0, 0, 1, 1);
        }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
      };
      const light = (rgb) => {
        const [r, g, b] = rgb.map((it) => (it / 255 <= 0.04045 ? it / 255 / 12.92 : ((it / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const behind = (element) => (element ? [...behind(element.parentElement), getComputedStyle(element).backgroundColor] : ["white"]);
      const found = [];
      for (const element of document.querySelectorAll("body *")) {
        const texts = [...element.childNodes].some((it) => it.nodeType === Node.TEXT_NODE && it.data.trim());
        if (!texts || !element.checkVisibility() || element.closest(".skip, .hidden, noscript, svg")) continue;
        const ground = behind(element);
        const [a, b] = [light(channels(ground)), light(channels([...ground, getComputedStyle(element).color]))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < 4.5) found.push(`${element.className || element.tagName}: ${element.textContent.slice(0, 30)} ${contrast.toFixed(2)}`);
      }
      return found;
    });
    assert.deepEqual(faint, [], colorScheme);
  }
  await page.emulateMedia({ colorScheme: "light" });
}

async function fitsNarrowScreens() {
  for (const width of [320, 390, 768]) {
    await page.setViewportSize({ width, height: 780 });
    await until(`a width of ${width}`, async () => {
      const widest = await page.evaluate(() => {
        const inScroll = (it) => it.closest(".scroll, .canvas, .skip, .hidden");
        const all = [...document.querySelectorAll("body *")].filter((it) => it.checkVisibility() && !inScroll(it));
        return Math.max(document.documentElement.scrollWidth, ...all.map((it) => it.getBoundingClientRect().right));
      });
      assert.ok(widest <= width + 0.5, `${widest}`);
    });
  }
  await page.setViewportSize({ width: 1280, height: 900 });
}

async function followsTheNode() {
  console.log("do: swap");
  await until("the next generation", async () => assert.match(await text("#generation"), /^generation 2,/));
  await page.click("#swaps summary");
  assert.match(await text("#swaps tbody tr"), /^2\s.*contacts replaced/s);
  console.log("do: stop");
  await until("the node to be missed", async () => assert.equal(await text("#state"), "No answer"));
  console.log("do: start");
  await isServing();
}

try {
  const answer = await page.goto(url);
  const policy = answer.headers()["content-security-policy"];
  assert.match(policy, /^default-src 'none'; script-src 'self'; style-src 'self'/);
  assert.ok(!/unsafe|https?:|\*/.test(policy), policy);
  await isServing();
  console.log("seen: serving");
  await showsWhatTheMetricsSay();
  console.log("seen: metrics");
  await keepsTextFromElsewhereText();
  console.log("seen: text");
  await runsNoOtherScript();
  console.log("seen: policy");
  await canBeUsedWithTheKeyboardAlone();
  console.log("seen: keyboard");
  await canBeRead();
  console.log("seen: contrast");
  await fitsNarrowScreens();
  console.log("seen: narrow");
  assert.deepEqual(faults, []);
  await followsTheNode();
  const others = asked.filter((it) => !it.startsWith(`${url}/`) && it !== "http://127.0.0.1:9/");
  assert.deepEqual(others, []);
  console.log("done");
} finally {
  await browser.close();
}
