// Memory of the GPU and of the machine: gauges of now and a plot of the last five minutes.

import { h, svg } from "../dom.js";
import { gigabytes, number, percent } from "../text.js";
import { keyedList, setText } from "./keyed.js";

const WIDTH = 600;
const HEIGHT = 120;
const MINUTES_5 = 300;
const PRESSURE = 0.8;
const KINDS = ["vram", "gtt", "ram"];

/** Points of a line for the samples `[{at, …}]`, as share of the whole; parts of it where samples are missing. */
export function linesOf(samples, kind, now) {
  const lines = [];
  let line = [];
  let last = null;
  for (const sample of samples) {
    const used = sample[`${kind}_used_gb`];
    const all = sample[`${kind}_ceil_gb`];
    const isKnown = typeof used === "number" && all > 0;
    const isGap = last !== null && sample.at - last > 15;
    if ((!isKnown || isGap) && line.length) {
      lines.push(line);
      line = [];
    }
    if (!isKnown) continue;
    const x = WIDTH * (1 - (now - sample.at) / MINUTES_5);
    if (x >= -4) line.push([Math.max(0, x), HEIGHT * (1 - Math.min(1, used / all))]);
    last = sample.at;
  }
  if (line.length) lines.push(line);
  return lines;
}

export class MemoryCard {
  constructor({ t }) {
    this.t = t;
    this.gauges = h("div", { class: "gauges" });
    this.showGauges = keyedList(this.gauges, (gauge) => gauge.kind, (gauge) => this.gauge(gauge.kind));
    this.lines = svg("g", {});
    this.plot = svg(
      "svg",
      { class: "memory-plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
      this.lines,
    );
    this.axis = h("div", { class: "plot-axis", "aria-hidden": "true" }, h("span", {}, t("machine.five_minutes_ago")), h("span", {}, t("machine.now")));
    this.unknown = h("p", { class: "hint", hidden: true }, t("machine.memory_unknown"));
    this.element = h(
      "section",
      { class: "card memory-card", "aria-labelledby": "machine-memory" },
      h("h2", { id: "machine-memory" }, t("machine.memory")),
      this.gauges,
      this.unknown,
      this.plot,
      this.axis,
    );
  }

  gauge(kind) {
    const { t } = this;
    const value = h("span", { class: "gauge-value" });
    const bar = h("span", { class: "gauge-bar" });
    const meter = h("div", { class: "gauge-track", role: "meter", "aria-label": t(`machine.memory_${kind}`), "aria-valuemin": "0" }, bar);
    const element = h(
      "div",
      { class: "gauge", dataset: { kind } },
      h("span", { class: "gauge-name" }, t(`machine.memory_${kind}`)),
      value,
      meter,
    );
    return {
      element,
      update: ({ used, all, isLow }) => {
        setText(value, t("machine.used_of", { used: gigabytes(used), all: gigabytes(all) }));
        bar.style.setProperty("inline-size", `${Math.min(100, (100 * used) / all)}%`);
        meter.setAttribute("aria-valuenow", number(used, 1));
        meter.setAttribute("aria-valuemax", number(all, 1));
        meter.setAttribute("aria-valuetext", `${value.textContent}, ${percent(used / all)}`);
        element.classList.toggle("is-low", isLow);
      },
    };
  }

  /** `memory`: of the status; `samples`: of the last minutes. */
  update(memory, samples = []) {
    const newest = { ...memory, ...Object.fromEntries(Object.entries(samples.at(-1) ?? {}).filter(([, value]) => value !== null)) };
    const gauges = KINDS.map((kind) => ({
      kind,
      used: newest[`${kind}_used_gb`],
      all: newest[`${kind}_ceil_gb`],
      isLow: kind !== "ram" && Boolean(memory?.pressure),
    })).filter(({ used, all }) => typeof used === "number" && all > 0);
    this.showGauges(gauges);
    this.unknown.hidden = gauges.length > 0;
    this.draw(samples);
  }

  draw(samples) {
    const now = samples.at(-1)?.at ?? 0;
    const isUseful = samples.length > 1;
    this.plot.toggleAttribute("hidden", !isUseful);
    this.axis.hidden = !isUseful;
    if (!isUseful) return;
    const drawn = [];
    const hasGpu = samples.some((sample) => sample.vram_ceil_gb > 0);
    if (hasGpu) {
      // Above this share the server speaks of pressure.
      const y = HEIGHT * (1 - PRESSURE);
      drawn.push(svg("line", { class: "plot-pressure", x1: 0, x2: WIDTH, y1: y, y2: y }));
    }
    for (const kind of hasGpu ? ["ram", "vram"] : ["ram"]) {
      for (const line of linesOf(samples, kind, now)) {
        const points = line.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
        if (kind === "vram" || !hasGpu) {
          const area = `${line[0][0].toFixed(1)},${HEIGHT} ${points} ${line.at(-1)[0].toFixed(1)},${HEIGHT}`;
          drawn.push(svg("polygon", { class: "plot-area", points: area }));
        }
        drawn.push(svg("polyline", { class: `plot-line plot-${kind}`, points }));
      }
    }
    this.plot.classList.toggle("has-gpu", hasGpu);
    this.lines.replaceChildren(...drawn);
    this.plot.setAttribute("aria-label", this.inWords(samples));
  }

  inWords(samples) {
    const parts = ["vram", "ram"].map((kind) => {
      const values = samples.map((sample) => sample[`${kind}_used_gb`]).filter((value) => typeof value === "number");
      if (!values.length) return null;
      const low = gigabytes(Math.min(...values));
      const high = gigabytes(Math.max(...values));
      return this.t("machine.plot_words", { what: this.t(`machine.memory_${kind}`), low, high });
    });
    return parts.filter(Boolean).join(" ");
  }
}
