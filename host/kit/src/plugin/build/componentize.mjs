// Makes a component of a plugin in TypeScript or JavaScript: bundled into one file, with a
// guard around what the host calls, and with all of the engine left out that would ask for
// WASI. What was built of the same before is kept, since the engine takes long.
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { builtinModules } from "node:module";
import { join, relative } from "node:path";
import { componentize, version } from "@bytecodealliance/componentize-js";
import { build } from "esbuild";

const [entry, witPath, worldName, api, output, guard] = process.argv.slice(-6);
const bundle = "build/bundle.js";
const exported = {
  filter: ["filter"],
  redactor: ["redact"],
  enricher: ["enrich"],
  "stateful-enricher": ["enrich", "save", "restore"],
}[worldName];

await writeFile("build/guard.js", guard.replaceAll("API_VERSION", api));
// The guard comes first, so that the plugin's modules see what it replaces.
const lines = ['import { guard } from "./guard.js";', `import * as plugin from "../${entry}";`];
for (const name of ["configure", ...exported]) {
  const mayRefuse = name === "configure" || name === "restore";
  lines.push(`export const ${name} = guard(plugin, "${name}", ${mayRefuse});`);
}
await writeFile("build/entry.js", `${lines.join("\n")}\n`);
let made;
try {
  made = await build({
    entryPoints: ["build/entry.js"],
    outfile: bundle,
    bundle: true,
    format: "esm",
    platform: "neutral",
    target: "es2022",
    external: ["presence:plugin/*"],
    plugins: [{ name: "without-node", setup: refuseNode }],
    logLevel: "warning",
    logOverride: { "import-is-undefined": "silent" },
    sourcemap: "external",
    write: false,
  });
} catch {
  // What is wrong has been said.
  process.exit(1);
}
const [map, code] = [".map", ".js"].map((end) => made.outputFiles.find((file) => file.path.endsWith(end)));
const text = `${code.text}\nglobalThis.presencePlaces = ${JSON.stringify(places(JSON.parse(map.text)))};\n`;

const inputs = createHash("sha256");
const wit = await readFile(witPath, "utf8");
for (const input of [text, wit, worldName, version]) {
  inputs.update(`${input.length}:`).update(input);
}
const digest = inputs.digest("hex");
const note = `${output}.inputs`;
if (existsSync(output) && existsSync(note) && (await readFile(note, "utf8")) === (await noteOf(output))) {
  process.exit(0);
}
await writeFile(bundle, text);
const { component } = await componentize({
  sourcePath: bundle,
  witPath,
  worldName,
  disableFeatures: ["stdio", "random", "clocks", "http", "fetch-event"],
});
await writeFile(output, component);
await writeFile(note, await noteOf(output));

/** Says of a module of Node that plugins run without it. A package of that name is taken. */
function refuseNode(build) {
  build.onResolve({ filter: /^[a-z]/ }, async ({ path, pluginData, ...from }) => {
    if (pluginData === refuseNode || !(path.startsWith("node:") || builtinModules.includes(path))) return undefined;
    const found = await build.resolve(path, { ...from, pluginData: refuseNode });
    if (found.errors.length === 0) return found;
    const text = `a plugin runs without Node, and has no files, network, clock or random numbers: "${path}" can't be used`;
    return { errors: [{ text }] };
  });
}

/** What a component was built of, and which it is. */
async function noteOf(file) {
  return `${digest} ${createHash("sha256").update(await readFile(file)).digest("hex")}\n`;
}

/**
 * From which files and lines the lines of the bundle come, as the guard looks them up: line and
 * column of the bundle, and the place of the file and the line in it, where that changes.
 */
function places({ sources, mappings }) {
  const own = relative("", "build/guard.js");
  const files = sources.map((file) => relative("", join("build", file)));
  const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const found = [];
  let [file, line] = [0, 0];
  for (const [number, segments] of mappings.split(";").entries()) {
    let column = 0;
    let last;
    for (const segment of segments.split(",").filter(Boolean)) {
      const fields = [];
      let [value, shift] = [0, 0];
      for (const digit of segment) {
        const bits = digits.indexOf(digit);
        value += (bits & 31) << shift;
        shift += 5;
        if (!(bits & 32)) {
          fields.push(value & 1 ? -(value >> 1) : value >> 1);
          [value, shift] = [0, 0];
        }
      }
      column += fields[0];
      if (fields.length < 4) continue;
      file += fields[1];
      line += fields[2];
      const here = `${file}:${line}`;
      if (here === last || files[file] === own) continue;
      last = here;
      found.push([number + 1, column + 1, file, line + 1]);
    }
  }
  return { files, places: found };
}
