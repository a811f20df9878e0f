// Vercel's AI SDK with its provider for OpenAI itself: every picture must be base64. For models that it does not know
// it requests base64 and one picture per request, in parallel; for gpt-image and for edits it requests no response format.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { generateImage } from "ai";
import { assertRedBesideBlue, picture, pictureInfo, servers } from "./row_support.mjs";

const openai = createOpenAI({ baseURL: `${servers.normal}/v1`, apiKey: "unused" });
const PLAIN = { prompt: "a cat in a hat", size: "256x256" };

function assertPictures(result, n) {
  assert.deepEqual(result.images.map((image) => pictureInfo(image.uint8Array)), Array(n).fill("png 256x256"));
  const { inputTokens, outputTokens, totalTokens } = result.usage;
  assert.ok([inputTokens, outputTokens, totalTokens].every(Number.isInteger), JSON.stringify(result.usage));
}

test("31 three pictures are three parallel requests", async () => {
  assertPictures(await generateImage({ model: openai.image("sdxl-turbo"), ...PLAIN, n: 3 }), 3);
});

test("31 gpt-image-1 gets base64 without requesting it", async () => {
  assertPictures(await generateImage({ model: openai.image("gpt-image-1"), ...PLAIN, n: 2 }), 2);
});

for (const name of ["sdxl-turbo", "gpt-image-1"]) {
  test(`31 an edit by ${name} gets base64 without requesting it`, async () => {
    const prompt = { text: "a cat", images: [picture("photo.png")] };
    assertPictures(await generateImage({ model: openai.image(name), prompt, size: "256x256" }), 1);
  });
}

test("31 two images arrive in order at a model that takes them", async () => {
  const stitching = createOpenAI({ baseURL: `${servers.failing}/v1`, apiKey: "unused" });
  const prompt = { images: [picture("red.png"), picture("blue.png")] };
  const result = await generateImage({ model: stitching.image("stitch"), prompt });
  assertRedBesideBlue(result.images[0].uint8Array);
});
