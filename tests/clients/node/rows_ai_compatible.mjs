// Vercel's AI SDK with its provider for whatever is compatible with OpenAI. Version 6 always asks for base64; version 7
// says nothing and fetches the url, which must have the origin of the base URL.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateImage } from "ai";
import { looks, picture, seen, served } from "./served.mjs";

const BASES = { "127.0.0.1": served.normal, localhost: served.normal.replace("127.0.0.1", "localhost") };
const PLAIN = { prompt: "a cat in a hat", size: "256x256" };

const modelAt = (url, options = {}) =>
  createOpenAICompatible({ name: "easel", baseURL: `${url}/v1`, apiKey: "unused", ...options }).imageModel("sdxl-turbo");
const looksOf = (result) => result.images.map((image) => looks(image.uint8Array));

for (const [host, url] of Object.entries(BASES)) {
  for (const n of [1, 3]) {
    test(`30 ${n} of a generation at ${host}`, async () => {
      assert.deepEqual(looksOf(await generateImage({ model: modelAt(url), ...PLAIN, n })), Array(n).fill("png 256x256"));
    });
  }

  for (const images of [[picture("photo.png")], [picture("photo.png"), picture("large.png")]]) {
    test(`30 an edit of ${images.length} with a mask at ${host}`, async () => {
      const prompt = { text: "a red ball", images, mask: picture("mask_alpha.png") };
      const result = await generateImage({ model: modelAt(url), prompt, size: "256x256" });
      assert.deepEqual(looksOf(result), ["png 256x256"]);
    });
  }
}

test("30 steps among the provider's options are honoured", async () => {
  const answers = [];
  const listening = async (...asked) => {
    const answer = await fetch(...asked);
    if (answer.headers.get("content-type").startsWith("application/json")) answers.push(await answer.clone().json());
    return answer;
  };
  const model = modelAt(served.normal, { fetch: listening });
  await generateImage({ model, ...PLAIN, providerOptions: { easel: { steps: 2 } } });
  assert.equal(answers[0]._hal0.meta.steps, 2);
});

const WRONG = { "image.prompt_required": [422, { prompt: "" }, /prompt/], "image.model_not_curated": [404, {}, /nope/] };
for (const [code, [status, wrong, message]] of Object.entries(WRONG)) {
  test(`32 ${code} is told in our words at the first try`, async () => {
    const id = randomUUID();
    const provider = createOpenAICompatible({ name: "easel", baseURL: `${served.normal}/v1`, apiKey: "unused" });
    const model = provider.imageModel(status === 404 ? "nope" : "sdxl-turbo");
    const headers = { "x-request-id": id };
    const error = await generateImage({ model, ...PLAIN, ...wrong, headers }).then(assert.fail, (error) => error);
    assert.ok(APICallError.isInstance(error), String(error));
    assert.deepEqual([error.statusCode, error.data.error.code], [status, code]);
    assert.match(error.message, message);
    assert.deepEqual(await seen("normal", id), [`POST /v1/images/generations ${status}`]);
  });
}
