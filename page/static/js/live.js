// Live updates of the server for this tab: status, memory, images, catalogue, pulls.
//
//   subscribe("status", (status) => …)   -> function that ends it; called at once if something is known already
//   latest("status")                     -> the last one, or undefined; latest("memory") is the list of five minutes
//   may("operate")              -> whether this reader's key has the scope
//   state.get(), state.subscribe(…)      -> "connecting", "live", "busy" (no place for a stream), "offline", "unauthorized",
//                                           "missing"

import { EventHistory } from "./event_history.js";
import { EventReader } from "./event_reader.js";
import { observable } from "./store.js";

const ALIVE_MS = 25_000; // much shorter than what the shared worker waits for

export const state = observable("connecting");

const history = new EventHistory();
const subscribers = new Map();
let connection = null;
let giveSharedKey = () => {};
const sharedKeyKnown = new Promise((resolve) => (giveSharedKey = resolve));

export function latest(type) {
  return history.latest(type);
}

/** Whether this reader's key has `scope`. Without a key, and while it is not known, the server decides. */
export function may(scope) {
  const key = latest("hello")?.key;
  return !key || key.scopes.includes(scope);
}

/** Calls `callback(data)` for each event of `type` from now on, and at once with the last one. */
export function subscribe(type, callback) {
  if (!subscribers.has(type)) subscribers.set(type, new Set());
  subscribers.get(type).add(callback);
  const known = latest(type);
  if (known !== undefined) call(callback, known);
  return () => subscribers.get(type).delete(callback);
}

function call(callback, data) {
  try {
    callback(data);
  } catch (error) {
    console.error(error); // one view's mistake ends no other view's updates
  }
}

function handle(event) {
  history.add(event);
  for (const callback of subscribers.get(event.event) ?? []) call(callback, event.data);
}

/** Starts the stream. `onKey(key)` is called when another tab got or changed the key. */
export function connect(url, key, onKey) {
  connection = canShare() ? shared(url, key, onKey) : own(url, key);
  document.addEventListener("visibilitychange", () => connection.setVisible(!document.hidden));
  addEventListener("pagehide", () => connection.close());
  addEventListener("pageshow", (event) => event.persisted && connection.open());
  addEventListener("online", () => connection.reconnect());
}

export function setKey(key) {
  connection?.setKey(key);
}

export function reconnect() {
  connection?.reconnect();
}

/** The key that another tab of this browser uses, or null. A shared worker may take seconds to start. */
export function keyOfOtherTabs() {
  return Promise.race([sharedKeyKnown, new Promise((resolve) => setTimeout(resolve, 5000, null))]);
}

function canShare() {
  return typeof SharedWorker === "function";
}

function shared(url, firstKey, onKey) {
  let key = firstKey;
  const worker = new SharedWorker(new URL("live_worker.js", import.meta.url), { type: "module", name: url });
  const { port } = worker;
  const send = (message) => port.postMessage(message);
  const tell = (type) => send({ type, url, key, visible: !document.hidden });
  let isOpen = true;
  port.addEventListener("message", ({ data: message }) => {
    if (message.type === "event") handle(message);
    else if (message.type === "state") state.set(message.state);
    else if (message.type === "welcome") {
      state.set(message.state);
      giveSharedKey(message.key);
    } else if (message.type === "key") {
      key = message.key;
      onKey(message.key);
    }
  });
  // A browser that knows SharedWorker but not modules in it reports an error.
  worker.addEventListener("error", () => {
    giveSharedKey(null);
    connection = own(url, key);
  });
  port.start();
  tell("hello");
  // A tab that crashes says nothing: who is silent for long is forgotten.
  setInterval(() => isOpen && tell("alive"), ALIVE_MS);
  return {
    // It is back, and not new: the key of the other tabs counts.
    open: () => {
      isOpen = true;
      tell("alive");
    },
    close: () => {
      isOpen = false;
      send({ type: "bye" });
    },
    reconnect: () => send({ type: "reconnect" }),
    setVisible: (visible) => send({ type: "visible", url, key, visible }),
    setKey: (value) => {
      key = value;
      send({ type: "key", key });
    },
  };
}

function own(url, key) {
  giveSharedKey(null);
  const reader = new EventReader(url, { onEvent: handle, onState: (value) => state.set(value) });
  reader.setKey(key);
  if (!document.hidden) reader.start();
  return {
    open: () => reader.start(),
    close: () => reader.stop(),
    reconnect: () => reader.reconnect(),
    setVisible: (visible) => (visible ? reader.start() : reader.stop()),
    setKey: (value) => reader.setKey(value),
  };
}
