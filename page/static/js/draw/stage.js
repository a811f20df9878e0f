// The middle of the view: the pictures of a drawing while it runs and after, what it waits for, and what was not done as asked.

import { h, icon, iconButton, replaceChildren } from "../dom.js";
import { number, percent, seconds, t, waitsFor } from "../text.js";
import { errorCard } from "./error_card.js";
import { parseSize } from "./sizes.js";

/**
 * {element, show(drawing), update(drawing), preview(index, bitmap), showStored(image, result)}. `actions(result)` gives
 * [{id, label, icon, run}] for a finished picture; `onError` the buttons of an error: {retry, pull, …}.
 */
export function createStage({ actions, remedies, onOpen }) {
  const grid = h("div", { class: "stage-grid" });
  const status = h("div", { class: "stage-status" });
  const below = h("div", { class: "stage-below" });
  const element = h("section", { class: "stage", "aria-label": t("draw.pictures") }, grid, status, below);
  let drawing = null;
  let cells = [];
  let shownKey = null;
  const timer = setInterval(() => drawing?.isActive && showStatus(), 1000);

  function show(next) {
    drawing = next;
    shownKey = null;
    const { ratio } = drawing;
    cells = Array.from({ length: drawing.count }, (_, index) => createCell(index, ratio));
    layOut(drawing.count, ratio);
    replaceChildren(grid, cells.map((cell) => cell.element));
    update();
  }

  function layOut(count, ratio) {
    grid.dataset.count = count;
    grid.style.setProperty("--columns", columnsFor(count, ratio));
    grid.style.setProperty("--rows", Math.ceil(count / columnsFor(count, ratio)));
    grid.style.setProperty("--ratio", ratio);
  }

  function update() {
    if (!drawing) return;
    drawing.images.forEach((image, index) => image && cells[index]?.finish(image));
    for (const cell of cells) cell.setActive(drawing.isActive);
    element.setAttribute("aria-busy", String(drawing.isActive));
    showStatus();
    // Only what has changed is made anew: buttons under the pointer or the focus stay.
    const key = `${drawing.phase}|${drawing.finished.length}|${drawing.kept.length}|${drawing.error?.code}`;
    if (key !== shownKey) {
      shownKey = key;
      showBelow();
    }
  }

  function showStatus() {
    const { text, share } = statusOf(drawing);
    if (!text) return void replaceChildren(status);
    let [bar, words] = status.children;
    if (!words) {
      bar = h("div", { class: "progress", role: "progressbar", "aria-label": t("draw.progress"), "aria-valuemin": 0, "aria-valuemax": 100 });
      words = h("p", { class: "status-text" });
      replaceChildren(status, bar, words);
    }
    bar.dataset.kind = share === null ? "unknown" : "known";
    if (share === null) bar.removeAttribute("aria-valuenow");
    else bar.setAttribute("aria-valuenow", Math.round(share * 100));
    bar.style.setProperty("--share", `${(share ?? 0) * 100}%`);
    if (words.textContent !== text) words.textContent = text;
  }

  function showBelow() {
    const results = drawing.kept;
    replaceChildren(
      below,
      drawing.phase === "failed" && errorCard(drawing.error, remedies(drawing.error)),
      drawing.phase === "stopped" && h("p", { class: "hint stage-note" }, t("draw.stopped")),
      results.length === 1 && drawing.count === 1 && actionBar(results[0]),
      results.length > 0 && !drawing.isActive && facts(results),
      results.length > 0 && notes(results[0].hal0),
    );
  }

  function createCell(index, ratio) {
    const label = drawing.count > 1 ? t("draw.picture_number", { index: index + 1, count: drawing.count }) : t("draw.picture");
    const cell = h("figure", { class: "picture is-empty" });
    let canvas = null;
    let finished = null;
    let isGone = false;

    function showActions() {
      if (drawing.count === 1 || !finished || isGone) return;
      cell.querySelector(".picture-actions")?.remove();
      cell.append(overlay(finished));
    }

    function showGone() {
      if (isGone) return;
      isGone = true;
      cell.classList.remove("is-active", "is-empty");
      replaceChildren(cell, h("p", { class: "picture-gone" }, icon("image"), t("draw.gone")));
    }

    return {
      element: cell,
      showActions,
      preview(bitmap) {
        if (finished || isGone) return bitmap.close();
        if (!canvas) {
          canvas = h("canvas", { role: "img", "aria-label": t("draw.preview", { name: label }) });
          cell.append(canvas);
        }
        canvas.width = bitmap.width;
        canvas.height = bitmap.height;
        canvas.getContext("bitmaprenderer").transferFromImageBitmap(bitmap);
        cell.classList.remove("is-empty");
        return undefined;
      },
      setActive(isActive) {
        cell.classList.toggle("is-active", isActive && !finished);
      },
      finish(image) {
        if (image.isGone) showGone(); // the browser may have kept it
        if (finished || isGone) return;
        finished = image;
        cell.classList.remove("is-active");
        const size = parseSize(image.size);
        const picture = h("img", { alt: describe(label, drawing.fields.prompt), width: size?.width, height: size?.height, decoding: "async", class: "is-loading" });
        picture.addEventListener("load", () => {
          picture.classList.remove("is-loading");
          canvas?.remove();
          cell.classList.remove("is-empty");
        });
        picture.addEventListener("error", showGone);
        picture.src = image.url;
        const open = h("button", { type: "button", class: "picture-open", "aria-label": t("draw.open", { name: label }), onclick: () => onOpen(drawing.kept, drawing.kept.indexOf(image)) }, picture);
        cell.append(open);
        showActions();
        if (size && Math.abs(size.width / size.height / ratio - 1) > 0.01) cell.style.setProperty("--ratio", size.width / size.height);
      },
    };
  }

  function overlay(image) {
    return h("div", { class: "picture-actions" }, actions(image, drawing).map(({ label, icon: name, run }) => iconButton(name, label, { class: "icon-button small", onclick: run })));
  }

  function actionBar(image) {
    return h(
      "div",
      { class: "action-bar", role: "group", "aria-label": t("draw.actions") },
      actions(image, drawing).map(({ label, icon: name, run }) => h("button", { type: "button", class: "button small", onclick: run }, icon(name, { size: 18 }), label)),
    );
  }

  return {
    element,
    show,
    update,
    preview: (index, bitmap) => cells[index]?.preview(bitmap),
    /** What can be done with the pictures may be more now. */
    showActions() {
      if (!drawing) return;
      for (const cell of cells) cell.showActions();
      showBelow();
    },
    showEmpty(...children) {
      drawing = null;
      replaceChildren(grid, h("div", { class: "stage-empty" }, children));
      grid.dataset.count = 0;
      replaceChildren(status);
      replaceChildren(below);
    },
    unmount: () => clearInterval(timer),
  };
}

function describe(label, prompt) {
  return prompt ? `${label}: ${prompt.slice(0, 200)}` : label;
}

function columnsFor(count, ratio) {
  if (count === 1) return 1;
  if (count === 2) return ratio > 1.3 ? 1 : 2;
  return count <= 4 ? 2 : count <= 9 ? 3 : 4;
}

/** {text, share: 0 to 1 or null if it is not known} of what runs; text is "" when nothing does. */
export function statusOf(drawing) {
  const { phase, waiting, progress, count, images } = drawing;
  const elapsed = (performance.now() - drawing.startedAt) / 1000;
  if (phase === "reconnecting") return { text: t("draw.reconnecting"), share: null };
  if (phase === "sending") return { text: elapsed > 1.5 ? t("draw.starting") : t("draw.sending"), share: null };
  if (phase === "starting") return { text: t("draw.starting"), share: null };
  if (phase === "waiting") return { text: waitingText(waiting), share: null };
  if (phase !== "drawing") return { text: "", share: null };
  const finished = images.filter(Boolean).length;
  const parts = [count > 1 ? t("draw.drawing_number", { index: Math.min(count, finished + 1), count }) : t("draw.drawing")];
  const steps = drawing.steps;
  if (steps > 1 && progress > 0) parts.push(t("draw.step", { step: Math.max(1, Math.round(progress * steps)), steps }));
  else if (progress > 0) parts.push(percent(progress));
  const left = timeLeft(drawing);
  if (left !== null) parts.push(t("draw.left", { time: seconds(left) }));
  return { text: parts.join(" · "), share: Math.min(1, (finished + (finished < count ? progress : 0)) / count) };
}

/** Seconds until the last picture, from the pace of this drawing; null while it is too early to say. */
function timeLeft({ progress, drawingSince, count, images, batch }) {
  if (progress < 0.1 || drawingSince === null) return null;
  const elapsed = (performance.now() - drawingSince) / 1000;
  const perJob = elapsed / progress;
  const jobsAfter = Math.ceil((count - images.filter(Boolean).length) / Math.max(1, batch)) - 1;
  const left = perJob * (1 - progress) + perJob * Math.max(0, jobsAfter);
  return left < 1 ? null : left < 10 ? Math.round(left) : Math.round(left / 5) * 5;
}

function waitingText(waiting) {
  const { place, expected_s: expected, waited_s: waited, receivedAt } = waiting;
  const what = waitsFor(waiting);
  const since = (performance.now() - receivedAt) / 1000;
  const parts = [what ? t("draw.waiting_for", { what }) : t("draw.waiting")];
  // The server says how many come before it.
  if (place) parts.push(t("draw.place", { place: place + 1 }));
  const left = expected === null || expected === undefined ? null : expected - since;
  if (left !== null && left > 1) parts.push(t("draw.left", { time: seconds(Math.round(left)) }));
  else parts.push(t("draw.waited", { time: seconds(Math.round(waited + since)) }));
  return parts.join(" · ");
}

function facts(results) {
  const [{ hal0, size }] = results;
  const seeds = [...new Set(results.map(({ seed }) => seed).filter((seed) => seed !== null && seed !== undefined))];
  const took = hal0.timings?.total_s;
  return h(
    "p",
    { class: "stage-facts" },
    [
      hal0.model,
      size?.replace("x", " × "),
      hal0.meta?.steps && t("draw.steps_fact", { steps: hal0.meta.steps }),
      seeds.length === 1 && t("draw.seed_fact", { seed: String(seeds[0]) }),
      took && seconds(took),
    ]
      .filter(Boolean)
      .map((fact) => h("span", {}, fact)),
  );
}

/** What was done otherwise than asked, and what was not done. */
export function notes({ adjusted = [], ignored = [] }) {
  if (!adjusted.length && !ignored.length) return null;
  const line = (entry, kind) =>
    h(
      "li",
      {},
      h("strong", {}, h("code", {}, entry.field)),
      " ",
      kind === "adjusted" && entry.done !== undefined
        ? t("draw.note_adjusted", { asked: show(entry.asked), done: show(entry.done) })
        : t("draw.note_ignored", { asked: show(entry.asked) }),
      entry.why && h("span", { class: "hint" }, entry.why),
    );
  return h(
    "div",
    { class: "notes", role: "note" },
    icon("info"),
    h("div", {}, h("h3", {}, t("draw.notes")), h("ul", {}, adjusted.map((entry) => line(entry, "adjusted")), ignored.map((entry) => line(entry, "ignored")))),
  );
}

function show(value) {
  if (typeof value === "number") return number(value);
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text === undefined ? "" : text.length > 80 ? `${text.slice(0, 79)}…` : text;
}
