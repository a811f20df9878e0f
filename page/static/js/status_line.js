// The line at the top that always says who has the GPU, what waits and how full the memory is. Opens the machine view.

import { h, replaceChildren } from "./dom.js";
import * as live from "./live.js";
import { addErrorTexts, gigabytes, messageOf, percent, t } from "./text.js";

/** Fills `element` and keeps it current. */
export function startStatusLine(element) {
  const dot = h("span", { class: "status-dot" });
  const words = h("span", { class: "status-words" });
  const memory = h("span", { class: "status-memory" });
  element.append(h("a", { href: "#machine", class: "status-link" }, dot, words, memory));
  const show = () => {
    const { kind, text } = summary(live.latest("status"), live.state.get());
    dot.dataset.kind = kind;
    words.textContent = text;
    replaceChildren(memory, memoryOf(live.latest("status"), live.latest("memory")?.at(-1)));
  };
  for (const type of ["status", "memory"]) live.subscribe(type, show);
  live.subscribe("status", ({ problem }) => problem && addErrorTexts().then(show, () => {}));
  live.state.subscribe(show);
  show();
}

/** What the line says: {kind: "ready"|"busy"|"waiting"|"off", text}. */
export function summary(status, state) {
  if (state === "offline") return { kind: "off", text: t("common.status_offline") };
  if (state === "busy") return { kind: "off", text: t("common.status_busy") };
  if (!status) return { kind: "off", text: state === "missing" ? "" : t("common.status_connecting") };
  if (status.switchover?.active)
    return {
      kind: "waiting",
      text: t(status.switchover.target === "inference" ? "common.status_to_llms" : "common.status_to_pictures"),
    };
  const canDraw = status.engines?.some((one) => one.reachable && !one.problem && !one.drained);
  if (!canDraw && !status.reachable && status.engine !== "stopped") return { kind: "off", text: t(`common.status_${status.engine}`) };
  const requests = status.requests ?? [...(status.jobs ?? []), ...(status.tickets ?? [])];
  const waiting = status.requests ? requests.filter((one) => one.state === "waiting").length : status.tickets?.length ?? 0;
  const drawing = requests.length - waiting;
  if (drawing || waiting) {
    const parts = [];
    if (drawing) parts.push(t("common.status_drawing", { count: drawing }));
    if (waiting) parts.push(t("common.status_waiting", { count: waiting }));
    return { kind: "busy", text: parts.join(" · ") };
  }
  if (status.problem && !canDraw) {
    const isStopped = status.problem.code === "engine.unreachable"; // Machine has the address and the remedy
    return { kind: "off", text: isStopped ? t("common.status_stopped") : messageOf(status.problem) };
  }
  if (!(status.stacks ?? []).length) return { kind: "ready", text: t(status.sketch ? "common.status_sketch" : "common.status_ready") };
  return { kind: "ready", text: t(status.mode === "inference" ? "common.status_llms" : "common.status_pictures") };
}

function memoryOf(status, sample) {
  const source = { ...status?.memory, ...sample };
  const used = source.vram_used_gb ?? source.ram_used_gb;
  const all = source.vram_ceil_gb ?? source.ram_ceil_gb;
  if (used === null || used === undefined || !all) return null;
  const kind = source.vram_used_gb ?? null;
  const share = Math.min(1, used / all);
  const label = t(kind === null ? "common.memory_ram" : "common.memory_vram", { used: gigabytes(used), all: gigabytes(all) });
  return h(
    "span",
    { class: "meter", role: "img", "aria-label": label, title: label },
    h("span", { class: "meter-bar", dataset: { level: share > 0.9 ? "high" : "normal" }, style: { "--share": percentCss(share) } }),
    h("span", { class: "meter-text", "aria-hidden": "true" }, percent(share)),
  );
}

function percentCss(share) {
  return `${Math.round(share * 100)}%`;
}
