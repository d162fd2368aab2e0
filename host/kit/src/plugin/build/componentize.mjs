// Makes a component of a plugin in TypeScript or JavaScript: bundled into one
// file, and with all of the engine left out that would ask for WASI.
import { writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";
import { build } from "esbuild";

const [entry, witPath, worldName, output] = process.argv.slice(-4);
const bundle = "build/bundle.js";
try {
  await build({
    entryPoints: [entry],
    outfile: bundle,
    bundle: true,
    format: "esm",
    platform: "neutral",
    target: "es2022",
    external: ["presence:plugin/*"],
    logLevel: "warning",
  });
} catch {
  // What is wrong has been said.
  process.exit(1);
}
const { component } = await componentize({
  sourcePath: bundle,
  witPath,
  worldName,
  disableFeatures: ["stdio", "random", "clocks", "http", "fetch-event"],
});
await writeFile(output, component);
