// The image models as the server lists them, and the documents of single ones with what a request may set.

import { observable } from "../store.js";

/**
 * {list, load(), detail(id), stateOf(model), defaultId(), unmount()}. `list` is an observable of models, null before they are
 * known. They are read again when the catalogue changes.
 */
export function createModels({ api, live }) {
  const list = observable(null);
  let details = new Map();
  let preferred = null;
  let loadedAt = null;

  async function load() {
    const answer = await api.request("v1/models?type=image");
    details = new Map();
    preferred = answer.data.find((model) => model.id === "img" && model.slot_of)?.slot_of ?? null;
    list.set(answer.data.filter((model) => !model.slot_of));
  }

  const unsubscribe = live.subscribe("catalogue", (catalogue) => {
    // Of very many models the status says nothing: then each of these events may mean that one is ready now.
    const isNew = loadedAt !== null && (catalogue.loaded_at !== loadedAt || !live.latest("status")?.models);
    loadedAt = catalogue.loaded_at;
    if (isNew) load().catch(() => {});
  });

  return {
    list,
    load,
    find: (id) => list.get()?.find((model) => model.id === id || model.aliases?.includes(id)) ?? null,
    defaultId: () => preferred ?? list.get()?.[0]?.id ?? null,
    detail(id) {
      if (!details.has(id)) {
        const promise = api.request(`v1/models/${encodeURI(id)}`);
        details.set(id, promise);
        promise.catch(() => details.delete(id));
      }
      return details.get(id);
    },
    stateOf: (model) => stateOf(model, live.latest("status")),
    unmount: unsubscribe,
  };
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
