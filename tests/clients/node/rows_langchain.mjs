// LangChain's DALL-E tool for JavaScript: n is always 1, several pictures are several parallel requests.
import assert from "node:assert/strict";
import { test } from "node:test";
import { DallEAPIWrapper } from "@langchain/openai";
import { base64Info, servers, urlInfo } from "./row_support.mjs";

const tool = (fields) =>
  new DallEAPIWrapper({ baseUrl: `${servers.normal}/v1`, apiKey: "unused", model: "sdxl-turbo", size: "256x256", ...fields });

test("29 the tool returns a url that can be fetched", async () => {
  const url = await tool({}).invoke("a cat in a hat");
  assert.equal(typeof url, "string");
  assert.equal(await urlInfo(url), "png 256x256");
});

test("29 the tool returns base64 when it is requested", async () => {
  const text = await tool({ dallEResponseFormat: "b64_json" }).invoke("a cat in a hat");
  assert.equal(typeof text, "string");
  assert.equal(base64Info(text), "png 256x256");
});

test("29 two pictures are two parallel requests", async () => {
  const items = await tool({ n: 2 }).invoke("a cat in a hat");
  assert.deepEqual(await Promise.all(items.map((item) => urlInfo(item.image_url))), Array(2).fill("png 256x256"));
});
