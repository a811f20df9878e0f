// Continue's command, with the configuration that `easel connect continue` prints.
import assert from "node:assert/strict";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { ANSWER, outputOf, printedLines } from "./row_support.mjs";

const program = fileURLToPath(new URL("../node_modules/@continuedev/cli/dist/cn.js", import.meta.url));

test("the printed configuration chats", async () => {
  const home = mkdtempSync(join(tmpdir(), "easel-continue-"));
  const config = join(home, "config.yaml");
  writeFileSync(config, `name: Test\nversion: 0.0.1\nschema: v1\n${printedLines("continue")}`);
  const environment = { PATH: process.env.PATH, HOME: home, CONTINUE_TELEMETRY_ENABLED: "0", CONTINUE_METRICS_ENABLED: "0" };
  const output = await outputOf("node", [program, "--config", config, "--print", "Hello"], home, environment);
  assert.ok(output.includes(ANSWER), output);
});
