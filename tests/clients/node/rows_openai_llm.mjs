// Chat, tools, embeddings, audio, models and responses with OpenAI's own SDK for JavaScript.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import OpenAI, { toFile } from "openai";
import {
  ANSWER, AUDIO, CHAT_MODELS, CUT_PROMPT, EMBEDDING_MODELS, VECTOR, WEATHER_TOOL, isReal, receivedRequests, servers,
} from "./row_support.mjs";

const client = new OpenAI({ baseURL: `${servers.llm}/v1`, apiKey: "unused" });
const messages = [{ role: "user", content: "Hello" }];
const assertAnswer = (text, model) => (isReal(model) ? assert.ok(text) : assert.equal(text, ANSWER));

async function all(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

for (const model of CHAT_MODELS) {
  test(`39 a chat with ${model} is answered`, async () => {
    const answer = await client.chat.completions.create({ model, messages, max_tokens: 8 });
    assertAnswer(answer.choices[0].message.content, model);
  });

  test(`40 a chat with ${model} is streamed`, async () => {
    const chunks = await all(await client.chat.completions.create({ model, messages, max_tokens: 8, stream: true }));
    assertAnswer(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), model);
  });

  test(`45 a response of ${model} is created and streamed`, async () => {
    const request = { model, input: "Hello", max_output_tokens: 8 };
    assertAnswer((await client.responses.create(request)).output_text, model);
    const events = await all(await client.responses.create({ ...request, stream: true }));
    assert.equal(events.at(-1).type, "response.completed");
  });
}

test("41 a tool is called", async () => {
  const answer = await client.chat.completions.create({ model: "primary", messages, tools: [WEATHER_TOOL] });
  assert.equal(answer.choices[0].message.tool_calls[0].function.arguments, '{"city":"Paris"}');
});

for (const model of EMBEDDING_MODELS) {
  test(`42 texts are embedded by ${model}`, async () => {
    const answer = await client.embeddings.create({ model, input: ["a", "b"] });
    if (isReal(model)) assert.ok(answer.data[0].embedding.length > 1);
    else assert.deepEqual(answer.data.map((item) => item.embedding), [VECTOR, VECTOR]);
  });
}

test("43 audio passes in both directions", async () => {
  const speech = await client.audio.speech.create({ model: "speaks", voice: "af_heart", input: "Hello" });
  assert.deepEqual(Buffer.from(await speech.arrayBuffer()), AUDIO);
  const file = await toFile(AUDIO, "a.mp3");
  assert.equal((await client.audio.transcriptions.create({ model: "hears", file })).text, ANSWER);
});

test("44 models of both kinds are listed and retrieved", async () => {
  const ids = (await all(client.models.list())).map((model) => model.id);
  for (const id of [...CHAT_MODELS, ...EMBEDDING_MODELS, "img"]) assert.ok(ids.includes(id), id);
  assert.equal((await client.models.retrieve("primary")).id, "primary");
});

test("46 an unknown model is a 404 that is not retried", async () => {
  const id = randomUUID();
  const request = client.chat.completions.create({ model: "nope", messages }, { headers: { "x-request-id": id } });
  const error = await request.then(assert.fail, (error) => error);
  assert.ok(error instanceof OpenAI.NotFoundError, String(error));
  assert.equal(error.code, "dispatch.no_route");
  assert.deepEqual(await receivedRequests("llm", id), ["POST /v1/chat/completions 404"]);
});

test("46 a stream that the upstream cuts raises an error", async () => {
  const request = { model: "primary", messages: [{ role: "user", content: CUT_PROMPT }], stream: true };
  const error = await client.chat.completions.create(request).then(all).then(assert.fail, (error) => error);
  assert.ok(error instanceof OpenAI.APIError, String(error));
  assert.equal(error.code, "dispatch.upstream_failed");
});
