// OpenAI's own SDK for JavaScript. The same tests run with every major version of it.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { test } from "node:test";
import OpenAI, { toFile } from "openai";
import {
  SLOW_MODEL, assertCompleteUsage, assertRedBesideBlue, base64Info, pathOf, picture, receivedRequests, servers, urlInfo,
} from "./row_support.mjs";

const connect = (url, options = {}) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", ...options });
const client = connect(servers.normal);
const SMALL = { prompt: "a cat in a hat", size: "256x256" };
const IN_STEPS = { ...SMALL, model: SLOW_MODEL, steps: 6 };

/** The error that `promise` rejects with; it must be an instance of `kind`. */
async function rejection(promise, kind) {
  const error = await promise.then(() => assert.fail("the call did not fail"), (error) => error);
  assert.ok(error instanceof kind, String(error));
  return error;
}

async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

// --- generations ---

test("01 a minimal request gets an absolute url on the origin it called", async () => {
  const response = await client.images.generate({ model: "sdxl-turbo", prompt: "a cat in a hat" });
  const [item] = response.data;
  assert.ok(item.url.startsWith(`${servers.normal}/`), item.url);
  assert.match(await urlInfo(item.url), /^png /);
  assert.ok(!("b64_json" in item));
  assert.ok(Number.isInteger(response.created));
  assertCompleteUsage(response.usage);
  assert.ok(response._hal0);
});

test("02 b64_json is a picture and there is no url", async () => {
  const response = await client.images.generate({ ...SMALL, model: "sdxl-turbo", response_format: "b64_json" });
  assert.equal(base64Info(response.data[0].b64_json), "png 256x256");
  assert.ok(!("url" in response.data[0]));
});

test("04 the fields that only gpt-image has are accepted and select base64", async () => {
  const response = await client.images.generate({
    model: "sdxl-turbo",
    prompt: "a cat",
    size: "auto",
    quality: "auto",
    background: "auto",
    moderation: "low",
    output_format: "jpeg",
    output_compression: 80,
    style: "vivid",
    user: "x",
  });
  assert.equal(base64Info(response.data[0].b64_json), "jpeg");
  assert.equal(response.output_format, "jpeg");
});

test("06 a field named extra_body is honoured", async () => {
  const response = await client.images.generate({ ...SMALL, extra_body: { seed: 1 } });
  assert.equal(response._hal0.meta.seed, 1);
});

// --- errors ---

test("08 an unknown model is a 404 that is not retried", async () => {
  const id = randomUUID();
  const request = client.images.generate({ prompt: "a cat", model: "nope" }, { headers: { "x-request-id": id } });
  const error = await rejection(request, OpenAI.NotFoundError);
  assert.deepEqual([error.code, error.param], ["image.model_not_curated", "model"]);
  assert.deepEqual(await receivedRequests("normal", id), ["POST /v1/images/generations 404"]);
});

test("09 an empty prompt is an error with type and details", async () => {
  const error = await rejection(client.images.generate({ prompt: "" }), OpenAI.UnprocessableEntityError);
  assert.deepEqual([error.code, error.type], ["image.prompt_required", "invalid_request_error"]);
  assert.equal(typeof error.error.details, "object");
});

test("11 an engine that is down is a 503 with Retry-After", async () => {
  const error = await rejection(connect(servers.down, { maxRetries: 0 }).images.generate(SMALL), OpenAI.InternalServerError);
  assert.deepEqual([error.status, error.code], [503, "engine.unreachable"]);
  assert.ok(Number(error.headers.get("retry-after")) > 0);
});

test("11 a failed job is a 500 that is not retried", async () => {
  const id = randomUUID();
  const fields = { ...IN_STEPS, model: "fails" };
  const request = connect(servers.failing).images.generate(fields, { headers: { "x-request-id": id } });
  const error = await rejection(request, OpenAI.InternalServerError);
  assert.deepEqual([error.status, error.code], [500, "engine.node_failed"]);
  assert.equal(error.headers.get("x-should-retry"), "false");
  assert.deepEqual(await receivedRequests("failing", id), ["POST /v1/images/generations 500"]);
});

// --- streams ---

const PARTIAL_KEYS = ["b64_json", "created_at", "size", "quality", "background", "output_format"];

test("12 a stream has the partial pictures and then the picture", async () => {
  const events = await all(await client.images.generate({ ...IN_STEPS, stream: true, partial_images: 2 }));
  const completed = events.pop();
  assert.ok(events.length <= 2);
  // A real ComfyUI sends previews only if it was started with them.
  if (servers.isSketch) assert.equal(events.length, 2);
  for (const [index, event] of events.entries()) {
    assert.equal(event.type, "image_generation.partial_image");
    assert.equal(event.partial_image_index, index);
  }
  assert.equal(completed.type, "image_generation.completed");
  for (const event of [...events, completed]) for (const key of PARTIAL_KEYS) assert.ok(key in event, key);
  assert.equal(base64Info(completed.b64_json), "png 256x256");
  assertCompleteUsage(completed.usage);
});

test("13 a stream without partial pictures has the picture and ends", async () => {
  const completed = (await all(await client.images.generate({ ...SMALL, stream: true }))).at(-1);
  assert.equal(completed.type, "image_generation.completed");
  assert.equal(base64Info(completed.b64_json), "png 256x256");
});

test("14 a streamed edit has events named after edits", async () => {
  const image = await toFile(picture("photo.png"), null, { type: "image/png" });
  const fields = { image, prompt: "a cat", model: SLOW_MODEL, steps: 6, stream: true, partial_images: 1 };
  const events = await all(await client.images.edit(fields));
  const completed = events.pop();
  assert.ok(events.length <= 1);
  for (const event of events) assert.equal(event.type, "image_edit.partial_image");
  assert.equal(completed.type, "image_edit.completed");
  assert.equal(base64Info(completed.b64_json), "png 256x256");
  assertCompleteUsage(completed.usage);
});

for (const [dialect, extra] of [["openai", {}], ["gpustack", { stream_options: { include_usage: true } }]]) {
  test(`19 a failure during a stream raises its code (${dialect})`, async () => {
    const fields = { ...IN_STEPS, model: "fails", stream: true, ...extra };
    const stream = await connect(servers.failing).images.generate(fields);
    const error = await rejection(all(stream), OpenAI.APIError);
    assert.equal(error.status, undefined);
    assert.equal(error.code, "engine.node_failed");
  });
}

// --- edits and models ---

const IMAGES = {
  "a file stream": () => createReadStream(pathOf("photo.png")),
  "a list with a file stream": () => [createReadStream(pathOf("photo.png"))],
  "bytes without a name": () => toFile(picture("photo.jpg"), null, { type: "image/jpeg" }),
};
for (const [name, make] of Object.entries(IMAGES)) {
  test(`23 an edit takes ${name}`, async () => {
    const response = await client.images.edit({ image: await make(), prompt: "a cat", size: "256x256" });
    assert.equal(base64Info(response.data[0].b64_json), "png 256x256");
  });
}

test("23 several file streams arrive in order at a model that takes them", async () => {
  const image = [createReadStream(pathOf("red.png")), createReadStream(pathOf("blue.png"))];
  const response = await connect(servers.failing).images.edit({ image, prompt: "", model: "stitch" });
  assertRedBesideBlue(Buffer.from(response.data[0].b64_json, "base64"));
});

test("34 models are listed and can be retrieved by their publishers' names", async () => {
  const models = await all(client.models.list());
  assert.ok(models.some((model) => model.id === "sdxl-turbo"));
  assert.equal((await client.models.retrieve("stabilityai/sdxl-turbo")).id, "sdxl-turbo");
  const error = await rejection(client.models.retrieve("nobody/nothing"), OpenAI.NotFoundError);
  assert.equal(error.code, "image.model_not_curated");
});
