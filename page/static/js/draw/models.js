// The image models of the server. Draw begins with the document of one; the list of all is read when it is needed: for the
// picker, for what can be done with a picture, and for settings that another view hands over.

import { observable } from "../store.js";

const DEFAULT = "img"; // the server's name for the model that draws without a name
const TOOLS = ["upscaler", "background removal"];

/**
 * {list, listed(), first(id), detail(id), find(id), changed, stateOf(model), unmount()}. `list` is an observable of models, null
 * before they are read. `changed` is an observable that changes whenever documents and list may be others.
 */
export function createModels({ api, live }) {
  const list = observable(null);
  const changed = observable(0);
  let details = new Map();
  let known = new Map();
  let listing = null;
  let loadedAt = null;

  async function load() {
    const answer = await api.request("v1/models?type=image");
    list.set(answer.data.filter((model) => !model.slot_of));
  }

  /** Reads the list unless it is there; throws what the request throws, and tries again the next time. */
  function listed() {
    return (listing ??= load().catch((error) => {
      listing = null;
      throw error;
    }));
  }

  async function read(id) {
    const { slot_of: model, ...document } = await api.request(`v1/models/${encodeURI(id)}`);
    const detail = model ? { ...document, id: model } : document;
    known.set(detail.id, detail);
    details.set(detail.id, Promise.resolve(detail));
    return detail;
  }

  function detail(id) {
    if (!details.has(id)) {
      const promise = read(id);
      details.set(id, promise);
      promise.catch(() => details.delete(id));
    }
    return details.get(id);
  }

  /** The model `id`, else the server's default, else the first of the list; null if there is none. */
  async function first(id) {
    for (const wanted of id ? [id, DEFAULT] : [DEFAULT]) {
      try {
        return await detail(wanted);
      } catch (error) {
        if (![403, 404].includes(error.status)) throw error;
      }
    }
    await listed();
    const [model = null] = list.get();
    return model && detail(model.id);
  }

  function forget() {
    details = new Map();
    known = new Map();
    listing = null;
    const again = list.get() ? listed().catch(() => {}) : Promise.resolve();
    again.then(() => changed.set(changed.get() + 1));
  }

  const unsubscribe = live.subscribe("catalogue", (catalogue) => {
    // Of very many models the status says nothing: then each of these events may mean that one is ready now.
    const isNew = loadedAt !== null && (catalogue.loaded_at !== loadedAt || !live.latest("status")?.models);
    loadedAt = catalogue.loaded_at;
    if (isNew) forget();
  });

  return {
    list,
    listed,
    first,
    detail,
    changed,
    find: (id) => known.get(id) ?? list.get()?.find((model) => model.id === id || model.aliases?.includes(id)) ?? null,
    stateOf: (model) => stateOf(model, live.latest("status")),
    unmount: unsubscribe,
  };
}

/** Whether `model` draws variations of a picture, and not one that is enlarged or without its background. */
export function varies(model) {
  return model.tasks.includes("vary") && !TOOLS.includes(model.family);
}

/** {kind: "ready"|"missing"|"blocked"|"licence", files: bytes that are missing}, from the live status if there is one. */
export function stateOf(model, status) {
  const refused = Object.values(model.not_drawable ?? {});
  if (!model.tasks.length) {
    const isLicence = ["denied", "not_accepted"].includes(model.licence?.state);
    return { kind: isLicence ? "licence" : "blocked", reason: texts(refused)[0] ?? null };
  }
  const facts = (status && factsIn(status, model.id)) ?? model.engine;
  if (!facts || facts.ready) return { kind: "ready", fitsGpu: facts?.fits_gpu ?? null };
  if (facts.files?.length) return { kind: "missing", bytes: sum(facts.files), fitsGpu: facts.fits_gpu };
  const needs = facts.needs_comfyui ? `ComfyUI ${facts.needs_comfyui}` : null;
  return { kind: "blocked", reason: needs ?? facts.lacks?.[0] ?? null, fitsGpu: facts.fits_gpu };
}

/** status -> model id -> what it says of the model: a list of a thousand models asks a thousand times. */
const readFacts = new WeakMap();

function factsIn(status, id) {
  if (!readFacts.has(status)) readFacts.set(status, new Map((status.models ?? []).map((facts) => [facts.id, facts])));
  return readFacts.get(status).get(id);
}

function sum(files) {
  const sizes = files.map((file) => file.size ?? file.size_bytes);
  return sizes.every((size) => typeof size === "number") ? sizes.reduce((all, size) => all + size, 0) : null;
}

function texts(values) {
  return values.flat(Infinity).filter((value) => typeof value === "string");
}

/** The inputs of the request for `task` of the images ("edit", "inpaint" or null), and which task they are for. */
export function inputsFor(detail, imageTask) {
  const inputs = detail.inputs ?? {};
  const order = imageTask ? [imageTask, "edit", "vary"] : ["generate", "edit", "vary"];
  const task = order.find((each) => each in inputs) ?? Object.keys(inputs)[0] ?? null;
  return { task, inputs: task ? inputs[task] : [] };
}
