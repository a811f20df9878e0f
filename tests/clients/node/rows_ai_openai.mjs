// Vercel's AI SDK with its provider for OpenAI itself: every picture must come as base64. Of models that it does not know
// it asks for one picture a request, several at once, and in base64; for gpt-image and for edits it names no form.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { generateImage } from "ai";
import { looks, picture, served } from "./served.mjs";

const openai = createOpenAI({ baseURL: `${served.normal}/v1`, apiKey: "unused" });
const PLAIN = { prompt: "a cat in a hat", size: "256x256" };

function assertPictures(result, n) {
  assert.deepEqual(result.images.map((image) => looks(image.uint8Array)), Array(n).fill("png 256x256"));
  const { inputTokens, outputTokens, totalTokens } = result.usage;
  assert.ok([inputTokens, outputTokens, totalTokens].every(Number.isInteger), JSON.stringify(result.usage));
}

test("31 three pictures are three requests at once", async () => {
  assertPictures(await generateImage({ model: openai.image("sdxl-turbo"), ...PLAIN, n: 3 }), 3);
});

test("31 gpt-image-1 gets base64 unasked", async () => {
  assertPictures(await generateImage({ model: openai.image("gpt-image-1"), ...PLAIN, n: 2 }), 2);
});

for (const name of ["sdxl-turbo", "gpt-image-1"]) {
  for (const images of [[picture("photo.png")], [picture("photo.png"), picture("large.png")]]) {
    test(`31 an edit of ${images.length} by ${name} gets base64 unasked`, async () => {
      const prompt = { text: "a cat", images };
      assertPictures(await generateImage({ model: openai.image(name), prompt, size: "256x256" }), 1);
    });
  }
}
