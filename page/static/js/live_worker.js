// The shared worker of all tabs: one event stream for all of them. It also keeps the key in memory for new tabs.

import { EventReader } from "./event_reader.js";
import { EventHistory } from "./event_history.js";

const HIDDEN_MS = 60_000; // a stream takes a thread of the server, which nobody looks at then

const SILENT_MS = 90_000; // hidden tabs may speak once in a minute only
const LOOK_MS = 15_000;

const ports = new Map(); // port -> whether its tab is visible
const heardAt = new Map(); // port -> when it spoke last
const history = new EventHistory();
let key = null;
let state = "connecting";
let reader = null;
let hiddenTimer = null;

function broadcast(message) {
  for (const port of ports.keys()) port.postMessage(message);
}

function createReader(url) {
  return new EventReader(url, {
    onEvent: (event) => {
      history.add(event);
      broadcast({ type: "event", ...event });
    },
    onState: (value) => {
      state = value;
      broadcast({ type: "state", state });
    },
  });
}

function setKey(value, from) {
  if (value === key) return;
  key = value;
  history.clear();
  reader?.setKey(key);
  for (const port of ports.keys()) if (port !== from) port.postMessage({ type: "key", key });
}

function runWhileVisible() {
  clearTimeout(hiddenTimer);
  if ([...ports.values()].some(Boolean)) {
    reader?.start();
  } else if (ports.size === 0) {
    reader?.stop();
  } else {
    hiddenTimer = setTimeout(() => reader?.stop(), HIDDEN_MS);
  }
}

/** Tabs that crashed or sleep must keep no stream open. One that wakes up says so, and gets what it missed. */
let lookedAt = Date.now();
setInterval(() => {
  const now = Date.now();
  // The machine was asleep, and with it all tabs.
  if (now - lookedAt > 4 * LOOK_MS) for (const port of ports.keys()) heardAt.set(port, now);
  lookedAt = now;
  const silent = [...ports.keys()].filter((port) => now - heardAt.get(port) > SILENT_MS);
  for (const port of silent) forget(port);
  if (silent.length) runWhileVisible();
}, LOOK_MS);

function forget(port) {
  ports.delete(port);
  heardAt.delete(port);
}

function receive(port, message) {
  heardAt.set(port, Date.now());
  const isBack = !ports.has(port) && ["alive", "visible"].includes(message.type);
  if (message.type === "hello" || isBack) {
    ports.set(port, message.visible);
    reader ??= createReader(message.url);
    // The key of a tab that slept may be older than that of the others.
    if (isBack && message.key !== key) port.postMessage({ type: "key", key });
    else if (message.key) setKey(message.key, port);
    port.postMessage({ type: "welcome", key, state });
    for (const event of history.events()) port.postMessage({ type: "event", ...event });
    runWhileVisible();
  } else if (message.type === "key") {
    setKey(message.key, port);
  } else if (message.type === "visible") {
    ports.set(port, message.visible);
    runWhileVisible();
  } else if (message.type === "reconnect") {
    reader?.reconnect();
  } else if (message.type === "bye") {
    forget(port);
    runWhileVisible();
  }
}

self.addEventListener("connect", (event) => {
  const [port] = event.ports;
  port.addEventListener("message", ({ data }) => receive(port, data));
  port.start();
});
