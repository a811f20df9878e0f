// LangChain's DALL-E tool for JavaScript: n is always 1, several pictures are several requests at once.
import assert from "node:assert/strict";
import { test } from "node:test";
import { DallEAPIWrapper } from "@langchain/openai";
import { looksOfBase64, looksOfUrl, served } from "./served.mjs";

const tool = (fields) =>
  new DallEAPIWrapper({ baseUrl: `${served.normal}/v1`, apiKey: "unused", model: "sdxl-turbo", size: "256x256", ...fields });

test("29 the tool answers a url that can be fetched", async () => {
  const url = await tool({}).invoke("a cat in a hat");
  assert.equal(typeof url, "string");
  assert.equal(await looksOfUrl(url), "png 256x256");
});

test("29 the tool answers base64 when it is asked for", async () => {
  const text = await tool({ dallEResponseFormat: "b64_json" }).invoke("a cat in a hat");
  assert.equal(typeof text, "string");
  assert.equal(looksOfBase64(text), "png 256x256");
});

test("29 two pictures at once", async () => {
  const items = await tool({ n: 2 }).invoke("a cat in a hat");
  assert.deepEqual(await Promise.all(items.map((item) => looksOfUrl(item.image_url))), Array(2).fill("png 256x256"));
});
