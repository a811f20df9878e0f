// What the rows know of the servers: addresses, what reached them, pictures to send and how to look at those that came.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const { env } = process;

export const served = {
  normal: env.EASEL_TEST_NORMAL_URL,
  down: env.EASEL_TEST_DOWN_URL,
  failing: env.EASEL_TEST_FAILING_URL,
  isSketch: env.EASEL_TEST_ENGINE === "sketch",
};
export const SLOW_MODEL = "sd-1.5-pruned-emaonly"; // draws in as many steps as it is told
export const pathOf = (name) => join(env.EASEL_TEST_PICTURES, name);
export const picture = (name) => readFileSync(pathOf(name));

/** Every request of that id which has reached `server`; ask once the client is through with all its retries. */
export async function seen(server, requestId) {
  for (let look = 0; look < 100; look++) {
    const lines = await (await fetch(`${env.EASEL_TEST_WITNESS_URL}/${server}/${requestId}`)).json();
    if (lines.length) return lines;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return [];
}

/** Kind and size of an encoded picture: "png 256x256", or "jpeg". */
export function looks(bytes) {
  const data = Buffer.from(bytes);
  if (data.subarray(0, 3).equals(Buffer.from([0xff, 0xd8, 0xff]))) return "jpeg";
  assert.equal(data.subarray(1, 4).toString("latin1"), "PNG");
  assert.equal(data.subarray(-8, -4).toString("latin1"), "IEND");
  return `png ${data.readUInt32BE(16)}x${data.readUInt32BE(20)}`;
}

export const looksOfBase64 = (text) => looks(Buffer.from(text, "base64"));

/** The same for the picture at an answer's url, to which no key is sent. */
export async function looksOfUrl(url) {
  const answer = await fetch(url);
  assert.equal(answer.status, 200);
  assert.equal(answer.headers.get("content-type"), "image/png");
  return looks(await answer.arrayBuffer());
}

/** Every count that some client reads without looking first. */
export function assertCompleteUsage(usage) {
  const details = usage.input_tokens_details;
  const counts = [usage.input_tokens, usage.output_tokens, usage.total_tokens, details.text_tokens, details.image_tokens];
  assert.ok(counts.every(Number.isInteger), JSON.stringify(usage));
}
