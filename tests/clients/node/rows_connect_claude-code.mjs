// Claude Code, with the variables that `easel connect claude-code` prints, in a home of its own.
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { ANSWER, outputOf, printedVariables } from "./row_support.mjs";

// The program is in a package for each platform, from which an install script would copy it.
const packages = fileURLToPath(new URL("../node_modules/@anthropic-ai/", import.meta.url));
const program = readdirSync(packages)
  .map((name) => join(packages, name, "claude"))
  .find(existsSync);

test("the printed variables are enough to chat", async () => {
  const home = mkdtempSync(join(tmpdir(), "easel-claude-"));
  const own = { PATH: process.env.PATH, HOME: home, CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1" };
  const output = await outputOf(program, ["--print", "Hello"], home, { ...own, ...printedVariables("claude-code") });
  assert.ok(output.includes(ANSWER), output);
});
