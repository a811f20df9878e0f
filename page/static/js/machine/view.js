// <easel-machine>: what the machine is doing, and what can be done about it. Everything comes from the live events.

import "../more_icons.js";
import { h } from "../dom.js";
import { DownloadsCard } from "./downloads_card.js";
import { EngineCard } from "./engine_card.js";
import { EnginesCard } from "./engines_card.js";
import { GpuCard, gpusOf } from "./gpu_card.js";
import { keyedList } from "./keyed.js";
import { MemoryCard } from "./memory_card.js";
import { ProblemsCard } from "./problems_card.js";
import { QueueCard } from "./queue_card.js";
import { StacksCard } from "./stacks_card.js";
import { SwitchesCard } from "./switches_card.js";

export async function mount(container, context) {
  const machine = document.createElement("easel-machine");
  machine.context = context;
  container.append(machine);
  return { unmount: () => machine.remove() };
}

class EaselMachine extends HTMLElement {
  connectedCallback() {
    const { live } = this.context;
    this.build();
    this.subscriptions = [
      live.subscribe("status", (status) => this.showStatus(status)),
      live.subscribe("memory", () => this.showMemory()),
      live.subscribe("pulls", () => this.showPulls()),
      live.subscribe("hello", () => this.showAll()),
      live.state.subscribe(() => this.showState()),
    ];
    this.ticking = setInterval(() => this.tick(), 1000);
    this.showMemory();
    this.showPulls();
    this.showState();
  }

  disconnectedCallback() {
    for (const unsubscribe of this.subscriptions) unsubscribe();
    clearInterval(this.ticking);
  }

  build() {
    const { t } = this.context;
    const cards = (this.cards = {
      gpu: new GpuCard(this.context),
      engine: new EngineCard(this.context),
      engines: new EnginesCard(this.context),
      memory: new MemoryCard(this.context),
      stacks: new StacksCard(this.context),
      queue: new QueueCard(this.context),
      switches: new SwitchesCard(this.context),
      downloads: new DownloadsCard(this.context),
      problems: new ProblemsCard(this.context),
    });
    this.furtherGpus = h("div", { class: "further-gpus" });
    this.gpuCards = new Map();
    this.showFurtherGpus = keyedList(this.furtherGpus, ({ gpuName }) => gpuName, ({ gpuName }) => this.gpuCard(gpuName));
    this.state = h("p", { class: "machine-state", role: "status" });
    this.grid = h(
      "div",
      { class: "machine-grid" },
      ...["problems", "engines", "gpu", "queue", "engine", "memory", "stacks", "switches", "downloads"].map((name) => cards[name].element),
    );
    cards.gpu.element.after(this.furtherGpus);
    this.replaceChildren(h("h1", { class: "visually-hidden" }, t("common.title_machine")), this.state, this.grid);
  }

  /** Of a GPU that is not the first one, for `keyedList`. */
  gpuCard(name) {
    const card = new GpuCard(this.context);
    return {
      element: card.element,
      update: (status) => {
        this.gpuCards.set(name, card);
        card.update(status, this.circumstances);
      },
    };
  }

  /** Why the reader may only look; null if nothing is in the way. */
  get reason() {
    return this.context.live.may("operate") ? null : this.context.t("machine.needs_operate");
  }

  showStatus(status) {
    this.at = Date.now() / 1000;
    const circumstances = (this.circumstances = { at: this.at, reason: this.reason });
    const [first, ...further] = gpusOf(status);
    this.cards.gpu.update(first, circumstances);
    this.gpuCards.clear();
    this.showFurtherGpus(further);
    for (const name of ["engine", "engines", "stacks", "queue", "switches", "problems"]) this.cards[name].update(status, circumstances);
    this.showMemory();
    this.showState();
  }

  showMemory() {
    const { live } = this.context;
    this.cards.memory.update(live.latest("status")?.memory, live.latest("memory") ?? []);
  }

  showPulls() {
    this.cards.downloads.update(this.context.live.latest("pulls"), { reason: this.reason });
  }

  showAll() {
    const status = this.context.live.latest("status");
    if (status) this.showStatus(status);
    this.showPulls();
  }

  /** Without events, what is shown is old: say so. */
  showState() {
    const { t, live } = this.context;
    const state = live.state.get();
    const isKnown = live.latest("status") !== undefined;
    this.grid.hidden = !isKnown;
    const isCurrent = state === "live" && isKnown;
    this.state.hidden = isCurrent;
    this.state.textContent = isCurrent ? "" : t(isKnown ? "machine.stale" : "machine.connecting");
    this.classList.toggle("is-stale", isKnown && state !== "live");
  }

  tick() {
    if (this.context.live.state.get() !== "live") return;
    for (const name of ["gpu", "engine", "queue", "switches"]) this.cards[name].tick();
    for (const card of this.gpuCards.values()) card.tick();
  }
}

customElements.define("easel-machine", EaselMachine);
