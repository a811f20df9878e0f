// The lines of `easel connect openai-node`, run as a file.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { test } from "node:test";
import { printedLines, urlInfo } from "./row_support.mjs";

test("the printed lines draw", async () => {
  const file = fileURLToPath(new URL("./printed.mjs", import.meta.url));
  writeFileSync(file, printedLines("openai-node"));
  const url = execFileSync("node", [file], { encoding: "utf8", timeout: 280_000 }).trim();
  assert.match(await urlInfo(url), /^png /);
});
