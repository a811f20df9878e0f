// SillyTavern's server, asked as its page asks it, with what `easel connect sillytavern` says to enter there.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { ANSWER, base64Info, printedLines } from "./row_support.mjs";

const folder = fileURLToPath(new URL("../node_modules/sillytavern/", import.meta.url));
const entered = Object.fromEntries(
  printedLines("sillytavern")
    .trim()
    .split("\n")
    .map((line) => line.split(/: (.*)/).slice(0, 2)),
);
let program, url, cookie, token;
let log = "";

before(async () => {
  const home = mkdtempSync(join(tmpdir(), "easel-sillytavern-"));
  const port = await freePort();
  const config = join(home, "config.yaml");
  writeFileSync(config, "browserLaunch: {enabled: false}\nextensions: {models: {autoDownload: false}}\n");
  const options = ["--configPath", config, "--dataRoot", join(home, "data"), "--port", String(port)];
  program = spawn("node", ["server.js", ...options], { cwd: folder, env: { PATH: process.env.PATH, HOME: home } });
  for (const stream of [program.stdout, program.stderr]) stream.on("data", (data) => (log += data));
  url = `http://127.0.0.1:${port}`;
  const answer = await firstAnswer(`${url}/csrf-token`);
  cookie = answer.headers.getSetCookie().map((each) => each.split(";")[0]).join("; ");
  token = (await answer.json()).token;
  await call("/api/secrets/write", { key: "api_key_custom", value: entered["Custom API Key"] });
}, { timeout: 300_000 });

after(() => program.kill());

test("the entered endpoint lists Easel's models", async () => {
  const { data } = await call("/api/backends/chat-completions/status", source());
  const ids = data.map((model) => model.id);
  assert.ok(ids.includes(entered["Enter a Model ID"]), ids.join(" "));
});

test("the entered model chats", async () => {
  const answer = await chat(entered["Enter a Model ID"]);
  assert.equal(answer.choices[0].message.content, ANSWER);
});

test("the image model draws in the chat", async () => {
  const answer = await chat("img");
  const found = /data:image\/png;base64,([A-Za-z0-9+\/=]+)/.exec(JSON.stringify(answer.choices[0].message));
  assert.ok(found, JSON.stringify(answer).slice(0, 500));
  assert.match(base64Info(found[1]), /^png /);
});

function source() {
  assert.equal(entered["Chat Completion Source"], "Custom (OpenAI-compatible)");
  return { chat_completion_source: "custom", custom_url: entered["Custom Endpoint (Base URL)"] };
}

function chat(model) {
  const messages = [{ role: "user", content: "a cat" }];
  return call("/api/backends/chat-completions/generate", { ...source(), model, messages, stream: false, max_tokens: 50 });
}

async function call(path, body) {
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": token, Cookie: cookie };
  const answer = await fetch(url + path, { method: "POST", headers, body: JSON.stringify(body) });
  assert.equal(answer.status, 200, `${path}: ${await answer.clone().text()}\n${log.slice(-3000)}`);
  return answer.json();
}

async function firstAnswer(address) {
  for (;;) {
    assert.equal(program.exitCode, null, log);
    const answer = await fetch(address).catch(() => null);
    if (answer?.ok) return answer;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

function freePort() {
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}
