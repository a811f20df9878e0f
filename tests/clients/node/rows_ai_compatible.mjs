// Vercel's AI SDK with its provider for OpenAI-compatible servers. Version 6 always requests base64; version 7 requests
// no response format and fetches the url, which must have the origin of the base URL.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateImage } from "ai";
import { assertRedBesideBlue, picture, pictureInfo, receivedRequests, servers } from "./row_support.mjs";

const URLS = { "127.0.0.1": servers.normal, localhost: servers.normal.replace("127.0.0.1", "localhost") };
const PLAIN = { prompt: "a cat in a hat", size: "256x256" };

const modelAt = (url, options = {}, model = "sdxl-turbo") =>
  createOpenAICompatible({ name: "easel", baseURL: `${url}/v1`, apiKey: "unused", ...options }).imageModel(model);
const pictureInfos = (result) => result.images.map((image) => pictureInfo(image.uint8Array));

for (const [host, url] of Object.entries(URLS)) {
  for (const n of [1, 3]) {
    test(`30 a generation of ${n} at ${host}`, async () => {
      const result = await generateImage({ model: modelAt(url), ...PLAIN, n });
      assert.deepEqual(pictureInfos(result), Array(n).fill("png 256x256"));
    });
  }

  test(`30 an edit with a mask at ${host}`, async () => {
    const prompt = { text: "a red ball", images: [picture("photo.png")], mask: picture("mask_alpha.png") };
    const result = await generateImage({ model: modelAt(url), prompt, size: "256x256" });
    assert.deepEqual(pictureInfos(result), ["png 256x256"]);
  });
}

test("30 two images arrive in order at a model that takes them", async () => {
  const prompt = { images: [picture("red.png"), picture("blue.png")] };
  const result = await generateImage({ model: modelAt(servers.failing, {}, "stitch"), prompt });
  assertRedBesideBlue(result.images[0].uint8Array);
});

test("30 two images for a model that takes one are refused", async () => {
  const prompt = { text: "a red ball", images: [picture("photo.png"), picture("large.png")] };
  const edit = generateImage({ model: modelAt(servers.normal), prompt, size: "256x256" });
  const error = await edit.then(assert.fail, (error) => error);
  assert.ok(APICallError.isInstance(error), String(error));
  assert.deepEqual([error.statusCode, error.data.error.code], [400, "image.image_count_not_allowed"]);
});

test("30 steps among the provider's options are honoured", async () => {
  const bodies = [];
  const recordingFetch = async (...args) => {
    const response = await fetch(...args);
    if (response.headers.get("content-type").startsWith("application/json")) bodies.push(await response.clone().json());
    return response;
  };
  const model = modelAt(servers.normal, { fetch: recordingFetch });
  await generateImage({ model, ...PLAIN, providerOptions: { easel: { steps: 2 } } });
  assert.equal(bodies[0]._hal0.meta.steps, 2);
});

const INVALID = { "image.prompt_required": [422, { prompt: "" }, /prompt/], "image.model_not_curated": [404, {}, /nope/] };
for (const [code, [status, fields, message]] of Object.entries(INVALID)) {
  test(`32 ${code} is raised with Easel's message and without a retry`, async () => {
    const id = randomUUID();
    const provider = createOpenAICompatible({ name: "easel", baseURL: `${servers.normal}/v1`, apiKey: "unused" });
    const model = provider.imageModel(status === 404 ? "nope" : "sdxl-turbo");
    const headers = { "x-request-id": id };
    const error = await generateImage({ model, ...PLAIN, ...fields, headers }).then(assert.fail, (error) => error);
    assert.ok(APICallError.isInstance(error), String(error));
    assert.deepEqual([error.statusCode, error.data.error.code], [status, code]);
    assert.match(error.message, message);
    assert.deepEqual(await receivedRequests("normal", id), [`POST /v1/images/generations ${status}`]);
  });
}
