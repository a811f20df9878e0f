// What the rows share: the servers' addresses, the requests that they received, pictures to send, and checks of
// returned pictures.
import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { inflateSync } from "node:zlib";

const { env } = process;

export const servers = {
  normal: env.EASEL_TEST_NORMAL_URL,
  llm: env.EASEL_TEST_LLM_URL,
  down: env.EASEL_TEST_DOWN_URL,
  failing: env.EASEL_TEST_FAILING_URL,
  isSketch: env.EASEL_TEST_ENGINE === "sketch",
};
export const SLOW_MODEL = "sd-1.5-pruned-emaonly"; // draws in as many steps as requested
export const CHAT_MODELS = env.EASEL_TEST_CHAT_MODELS.split(",");
export const EMBEDDING_MODELS = env.EASEL_TEST_EMBEDDING_MODELS.split(",");
export const isReal = (model) => ![CHAT_MODELS[0], EMBEDDING_MODELS[0], CHAT_MODELS.at(-1)].includes(model);
// What the fake LLM server says; these constants are those of llm_upstream.py.
export const ANSWER = "Hello from the upstream: 你好 🎨";
export const CUT_PROMPT = "cut the stream";
export const VECTOR = [0.25, -0.5, 1.0];
const everyByte = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
export const AUDIO = Buffer.concat([Buffer.from([0xff, 0xf3, 0x44, 0xc4]), ...Array(400).fill(everyByte)]);
export const WEATHER_TOOL = {
  type: "function",
  function: { name: "weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
};
export const pathOf = (name) => join(env.EASEL_TEST_PICTURES, name);
export const picture = (name) => readFileSync(pathOf(name));

/** What `easel connect PROGRAM` prints for the server `llm`. */
export function printedLines(program) {
  const [command, ...argv] = JSON.parse(env.EASEL_TEST_CONNECT);
  return execFileSync(command, [...argv, program], { encoding: "utf8", timeout: 120_000, stdio: ["ignore", "pipe", "pipe"] });
}

/** The same for a program that is set up by variables. */
export const printedVariables = (program) =>
  Object.fromEntries(printedLines(program).trim().split("\n").map((line) => line.split(/=(.*)/).slice(0, 2)));

/** What a program prints, without input; fails with all of it if the program fails. */
export function outputOf(program, argv, cwd, env) {
  return new Promise((resolve, reject) => {
    const started = execFile(program, argv, { cwd, env, timeout: 280_000 }, (error, stdout, stderr) =>
      error ? reject(new Error(`${error.message}\n${stdout}\n${stderr}`)) : resolve(stdout),
    );
    started.stdin.end();
  });
}

/** Every request with that id that `server` received. Call it after the client has finished all its retries. */
export async function receivedRequests(server, requestId) {
  for (let attempt = 0; attempt < 100; attempt++) {
    const lines = await (await fetch(`${env.EASEL_TEST_ACCESS_LOGS_URL}/${server}/${requestId}`)).json();
    if (lines.length) return lines;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return [];
}

/** Format and size of an encoded picture: "png 256x256", or "jpeg". */
export function pictureInfo(bytes) {
  const data = Buffer.from(bytes);
  if (data.subarray(0, 3).equals(Buffer.from([0xff, 0xd8, 0xff]))) return "jpeg";
  assert.equal(data.subarray(1, 4).toString("latin1"), "PNG");
  assert.equal(data.subarray(-8, -4).toString("latin1"), "IEND");
  return `png ${data.readUInt32BE(16)}x${data.readUInt32BE(20)}`;
}

/** The model `stitch` drew red.png to the left of blue.png. The lines of the PNG may have any filter, so the middle of each
 * half is read after all the lines above it. */
export function assertRedBesideBlue(bytes) {
  assert.equal(pictureInfo(bytes), "png 512x256");
  const data = Buffer.from(bytes);
  const [depth, colourType] = data.subarray(24);
  const channels = { 2: 3, 6: 4 }[colourType];
  assert.ok(depth === 8 && channels, `${depth} ${colourType}`);
  const parts = [];
  for (let at = 8; at < data.length; at += 12 + data.readUInt32BE(at)) {
    if (data.toString("latin1", at + 4, at + 8) === "IDAT") parts.push(data.subarray(at + 8, at + 8 + data.readUInt32BE(at)));
  }
  const row = linesOf(inflateSync(Buffer.concat(parts)), 512 * channels, channels)[128];
  const pixels = [128, 384].map((x) => [...row.subarray(x * channels, x * channels + 3)]);
  assert.deepEqual(pixels, [[255, 0, 0], [0, 0, 255]]);
}

/** The lines of a decompressed PNG without their filters. */
function linesOf(data, length, channels) {
  const lines = [];
  for (let at = 0; at < data.length; at += length + 1) {
    const above = lines.at(-1) ?? Buffer.alloc(length);
    const line = Buffer.from(data.subarray(at + 1, at + 1 + length));
    for (let i = 0; i < length; i++) {
      const left = line[i - channels] ?? 0;
      const corner = above[i - channels] ?? 0;
      const up = above[i];
      const [a, b, c] = [left, up, corner].map((value) => Math.abs(left + up - corner - value));
      const paeth = a <= b && a <= c ? left : b <= c ? up : corner;
      line[i] += [0, left, up, (left + up) >> 1, paeth][data[at]];
    }
    lines.push(line);
  }
  return lines;
}

export const base64Info = (text) => pictureInfo(Buffer.from(text, "base64"));

/** The same for the picture at a response's url, requested without a key. */
export async function urlInfo(url) {
  const response = await fetch(url);
  assert.equal(response.status, 200);
  assert.equal(response.headers.get("content-type"), "image/png");
  return pictureInfo(await response.arrayBuffer());
}

/** Every token count that some client reads without checking that it exists. */
export function assertCompleteUsage(usage) {
  const details = usage.input_tokens_details;
  const counts = [usage.input_tokens, usage.output_tokens, usage.total_tokens, details.text_tokens, details.image_tokens];
  assert.ok(counts.every(Number.isInteger), JSON.stringify(usage));
}
