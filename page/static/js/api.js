// Calls of Easel's public API. Every URL begins where the page's own files lie, so a path prefix needs no setting.

import * as live from "./live.js";
import { readEvents } from "./sse.js";
import { load, save } from "./store.js";
import { addErrorTexts, messageOf, t } from "./text.js";

/** Where Easel is, without a trailing slash: "http://127.0.0.1:8080" or "https://example.org/easel". */
export const root = new URL("../../..", import.meta.url).href.replace(/\/$/, "");

let key = load("key", null, "sessionStorage");
let askForKey = async () => null;
let asking = null;
let stopAsking = () => {};
let isRefused = false; // the dialog was closed: only what the reader does opens it again

export class ApiError extends Error {
  /** `status` is 0 if the server could not be reached; `code` is stable, `message` says what would work. */
  constructor({ status = 0, code = "network.unreachable", message = "", param = null, details = {} }) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { status, code, param, details: details ?? {} });
  }
}

export function url(path) {
  return `${root}/${path.replace(/^\//, "")}`;
}

/**
 * Where this page gets the stored image `name`. Answers name the host and path by which the server knows itself; behind a
 * proxy, or with public_url, they can be others, from which the page's policy loads nothing.
 */
export function pictureUrl(name) {
  return url(`api/images/cache/${encodeURIComponent(name)}`);
}

export function thumbnailUrl(name) {
  return url(`api/images/${encodeURIComponent(name)}/thumbnail`);
}

export function getKey() {
  return key;
}

export function setKey(value) {
  key = value;
  save("key", value, "sessionStorage");
  live.setKey(value);
}

/** `ask(signal)` shows the dialog until `signal` ends it; its promise is a key that works, or null. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** Starts the live events. */
export function connect() {
  live.connect(url("api/events"), key, (shared) => {
    const isAnother = key !== null;
    key = shared;
    save("key", shared, "sessionStorage");
    // What is shown belongs to the key before, or says that there is none.
    if (isAnother || isRefused) location.reload();
    else stopAsking();
  });
  // The stream cannot ask, so a small request does.
  live.state.subscribe((state) => state === "unauthorized" && !isRefused && request("api/keys/me").catch(() => {}));
}

/**
 * JSON of `path`, or null for an answer without a body. Throws ApiError, or AbortError if `signal` ends it.
 * `body`: an object for JSON, or FormData. A 401 asks for a key once and tries again.
 */
export async function request(path, { method, body, signal, headers = {} } = {}) {
  const response = await send(path, { method, body, signal, headers });
  if (response.status === 204) return null;
  const answer = await parsed(response);
  if (response.ok) return answer;
  throw await errorOf(response, answer);
}

/** Calls `onEvent({event, data, id})`, data as text, until the stream ends. Throws as `request` does. */
export async function stream(path, body, { onEvent, signal, headers = {} } = {}) {
  const response = await send(path, { method: body === undefined ? "GET" : "POST", body, signal, headers });
  if (!response.ok) throw await errorOf(response, await parsed(response));
  await readEvents(response, onEvent);
}

async function send(path, options) {
  let response = await sendOnce(path, options);
  if (response.status === 401 && (await newKey())) response = await sendOnce(path, options);
  return response;
}

async function sendOnce(path, { method, body, signal, headers }) {
  const isForm = body instanceof FormData;
  const sent = { Accept: "application/json", ...headers };
  if (body !== undefined && !isForm) sent["Content-Type"] = "application/json";
  if (key) sent.Authorization = `Bearer ${key}`;
  try {
    return await fetch(url(path), {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers: sent,
      body: body === undefined || isForm ? body : JSON.stringify(body),
      signal,
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // What the browser says names no cause, and is in its own language.
    throw new ApiError({ message: t("common.unreachable") });
  }
}

async function parsed(response) {
  try {
    return await response.json();
  } catch {
    return null;
  }
}

export async function errorOf({ status }, answer) {
  const { code = `http.${status}`, message = "", param = null, details = {} } = answer?.error ?? {};
  return new ApiError({ status, ...(await inOwnWords({ code, message, param, details })) });
}

/** `error` with its message in the reader's language, and that of the server as `original` if it is another. */
export async function inOwnWords(error) {
  await addErrorTexts().catch(() => {}); // the server's message does as well
  const message = messageOf(error);
  return message === error.message ? error : { ...error, message, original: error.message };
}

/** Whether there is a key now that was not used before. Asks once, however many requests wait for it. */
export function newKey() {
  asking ??= findKey().finally(() => (asking = null));
  return asking;
}

async function findKey() {
  const used = key;
  const shared = await live.keyOfOtherTabs();
  const asked = new AbortController();
  stopAsking = () => asked.abort();
  const found = (shared && shared !== used && (await keyWorks(shared)) && shared) || (await askForKey(asked.signal));
  if (found) setKey(found);
  // Without one from here, another tab may have got it meanwhile.
  const isThere = Boolean(found) || (key !== null && key !== used);
  isRefused = !isThere;
  return isThere;
}

/** Whether the server accepts `candidate`. Throws ApiError if it cannot be reached. */
export async function keyWorks(candidate) {
  try {
    const response = await fetch(url("api/keys/me"), {
      headers: { Authorization: `Bearer ${candidate}` },
      credentials: "omit",
    });
    return response.status !== 401;
  } catch {
    throw new ApiError({ message: t("common.unreachable") });
  }
}
