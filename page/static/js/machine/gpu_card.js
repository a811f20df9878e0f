// Who has the GPU, since when, and the switches: to pictures, to the LLMs, by force, and the pin.

import { h, icon } from "../dom.js";
import { seconds } from "../text.js";
import { time } from "../times.js";
import { actionButton } from "./actions.js";
import { keyedList, setText } from "./keyed.js";

const PHASES = ["closing", "draining", "releasing", "verifying", "starting", "restoring"];

/** What a phase of a switch is called; as the server calls it if this page does not know it. */
export function phaseName(t, name) {
  return PHASES.includes(name) ? t(`machine.phase_${name}`) : name;
}

/** The name of a mode: who has the GPU in it. */
export function modeName(t, mode) {
  return t(mode === "inference" ? "machine.mode_inference" : "machine.mode_generation");
}

/** What the document says of each GPU that LLM servers share, as if it were the only one; the first GPU in any case. */
export function gpusOf(status) {
  const gpus = status.gpus ?? [];
  if (gpus.length < 2) return [{ ...status, gpuName: null }];
  return gpus
    .filter((gpu, index) => index === 0 || gpu.arbiter)
    .map((gpu) => {
      const isFirst = gpu === gpus[0];
      // The fields of the status itself are those of the first engine, which is not listed if it is the only one.
      const engine = isFirst ? status : (status.engines ?? []).find((each) => each.name === gpu.engine);
      const { engine: state = "stopped", mode, version, sketch } = engine ?? {};
      const isHere = (each) => (each.engine === undefined ? isFirst : each.engine === gpu.engine);
      return {
        ...gpu,
        gpuName: gpu.name,
        engine: state,
        mode: gpu.arbiter?.mode ?? mode,
        version,
        sketch,
        requests: (status.requests ?? []).filter(isHere),
        stacks: (status.stacks ?? []).filter((stack) => stack.gpu === gpu.name),
      };
    });
}

let cards = 0;

export class GpuCard {
  constructor(context) {
    this.context = context;
    const { t } = context;
    const id = `machine-gpu-${++cards}`;
    this.title = h("h2", { id }, t("machine.who"));
    this.words = h("p", { class: "gpu-words", role: "status" });
    this.note = h("p", { class: "gpu-note" });
    this.sides = {
      generation: this.side("image", t("machine.pictures")),
      inference: this.side("chat", t("machine.llms")),
    };
    const described = { describedBy: `${id}-reason` };
    this.toPictures = actionButton(t("machine.to_pictures"), () => this.switchTo("generation"), { ...described, kind: "primary" });
    this.toLlms = actionButton(t("machine.to_llms"), () => this.switchTo("inference"), { ...described, kind: "primary" });
    this.force = actionButton(t("machine.force_pictures"), () => this.switchByForce(), { ...described, kind: "danger" });
    this.pin = actionButton(t("machine.pin"), () => this.setPin(), described);
    this.reason = h("p", { class: "hint", id: `${id}-reason`, hidden: true });
    this.pin.button.prepend(icon("pin", { size: 18 }));
    this.buttons = h(
      "div",
      { class: "actions" },
      ...[this.toPictures, this.toLlms, this.pin, this.force].map((action) => action.element),
    );
    this.phases = h("ol", { class: "phases" });
    this.showPhases = keyedList(this.phases, (phase) => phase.name, () => this.phase());
    this.switching = h("div", { class: "switching", hidden: true }, this.phases);
    this.failed = h("div", { class: "problem", hidden: true });
    this.element = h(
      "section",
      { class: "card gpu-card", "aria-labelledby": id },
      this.title,
      h("div", { class: "gpu-sides", "aria-hidden": "true" }, this.sides.generation.element, icon("swap", { size: 28 }), this.sides.inference.element),
      this.words,
      this.note,
      this.switching,
      this.failed,
      this.buttons,
      this.reason,
    );
  }

  side(name, title) {
    const detail = h("span", { class: "gpu-side-detail" });
    return { element: h("div", { class: "gpu-side" }, icon(name, { size: 28 }), h("strong", {}, title), detail), detail };
  }

  phase() {
    const name = h("span", {});
    const took = h("span", { class: "phase-seconds" });
    const element = h("li", {}, name, took);
    return {
      element,
      update: (phase) => {
        setText(name, phaseName(this.context.t, phase.name));
        setText(took, phase.seconds === null ? "" : seconds(phase.seconds));
        element.classList.toggle("is-current", phase.isCurrent);
      },
    };
  }

  update(status, { at, reason }) {
    const { t } = this.context;
    const { arbiter, switchover, mode } = status;
    this.status = status;
    this.at = at;
    setText(this.title, status.gpuName === null ? t("machine.who") : t("machine.who_has", { name: status.gpuName }));
    const isSwitching = Boolean(switchover?.active);
    this.element.classList.toggle("is-switching", isSwitching);
    for (const [name, side] of Object.entries(this.sides)) {
      side.element.classList.toggle("is-active", name === mode && !isSwitching);
      side.element.classList.toggle("is-next", isSwitching && name === switchover.target);
    }
    setText(this.sides.generation.detail, engineWords(t, status));
    setText(this.sides.inference.detail, llmWords(t, status));
    this.showButtons(arbiter, isSwitching, reason);
    this.showFailure(switchover);
    this.tick();
  }

  /** What changes with time alone. */
  tick() {
    if (!this.status) return;
    const { t } = this.context;
    const { arbiter, switchover, mode, sketch } = this.status;
    const now = Date.now() / 1000;
    if (switchover?.active) {
      setText(this.words, t(switchover.target === "inference" ? "machine.going_to_llms" : "machine.going_to_pictures"));
      setText(this.note, reasonText(t, switchover));
    } else if (!arbiter) {
      setText(this.words, t(sketch ? "machine.not_shared_sketch" : "machine.not_shared"));
      setText(this.note, t("machine.not_shared_hint"));
    } else {
      const since = arbiter.since ? seconds(Math.max(0, now - arbiter.since)) : null;
      setText(this.words, since ? t("machine.since", { who: modeName(t, mode), time: since }) : modeName(t, mode));
      setText(this.note, this.next(arbiter, now));
    }
    this.showSwitch(switchover, now);
  }

  /** What happens next by itself. */
  next(arbiter, now) {
    const { t } = this.context;
    if (arbiter.pinned) return t("machine.pinned");
    if (arbiter.wanted) return t("machine.wanted", { who: modeName(t, arbiter.wanted) });
    if (arbiter.idle_restore_at && arbiter.idle_restore_at > now) {
      return t("machine.goes_back", { time: seconds(Math.ceil(arbiter.idle_restore_at - now)), at: time(arbiter.idle_restore_at) });
    }
    return arbiter.rebuilt ? t("machine.rebuilt", { why: arbiter.rebuilt }) : "";
  }

  showSwitch(switchover, now) {
    const isActive = Boolean(switchover?.active);
    this.switching.hidden = !isActive;
    if (!isActive) return;
    const done = switchover.phases.filter((phase) => phase.name !== switchover.phase);
    const sum = done.reduce((total, phase) => total + phase.seconds, 0);
    const elapsed = (switchover.elapsed_s ?? sum) + Math.max(0, now - this.at);
    const phases = done.map((phase) => ({ ...phase, isCurrent: false }));
    if (switchover.phase) {
      phases.push({ name: switchover.phase, seconds: Math.max(0, elapsed - sum), isCurrent: true });
    }
    this.showPhases(phases);
  }

  showButtons(arbiter, isSwitching, reason) {
    const { t } = this.context;
    this.buttons.hidden = !arbiter;
    setText(this.reason, arbiter ? (reason ?? "") : "");
    if (!arbiter) return;
    const { mode } = this.status;
    const busy = isSwitching ? t("machine.is_switching") : null;
    this.toPictures.element.hidden = mode === "generation";
    this.toLlms.element.hidden = mode === "inference";
    this.toPictures.allow(reason ?? busy);
    this.toLlms.allow(reason ?? busy);
    this.force.allow(reason);
    this.force.label(t(mode === "inference" ? "machine.force_pictures" : "machine.force_llms"));
    // A pin holds the GPU for pictures; while the LLMs have it there is nothing to hold.
    this.pin.element.hidden = mode !== "generation" && !arbiter.pinned;
    this.pin.allow(reason ?? busy);
    this.pin.label(t(arbiter.pinned ? "machine.unpin" : "machine.pin"));
    this.pin.button.setAttribute("aria-pressed", String(arbiter.pinned));
  }

  showFailure(switchover) {
    const { t } = this.context;
    const failed = switchover?.failed ?? [];
    const lines = [];
    if (switchover?.error && !switchover.active) lines.push(t("machine.switch_failed", { why: switchover.error }));
    for (const { owner, id, message } of failed) lines.push(t("machine.not_loaded", { model: `${owner}/${id}`, why: message }));
    const text = lines.join("\n");
    if (this.failure === text) return;
    this.failure = text;
    this.failed.hidden = !lines.length;
    this.failed.replaceChildren(...lines.map((line) => h("p", { dir: "auto" }, line)));
  }

  switchTo(mode) {
    return this.context.api.request("/api/comfyui/switchover", { body: { mode, ...this.named } });
  }

  async switchByForce() {
    const { t, confirm, api } = this.context;
    const mode = this.status.mode === "inference" ? "generation" : "inference";
    const count = (this.status.requests ?? []).length;
    const text = t(mode === "inference" ? "machine.force_llms_text" : "machine.force_pictures_text", { count });
    if (!(await confirm(t("machine.force_question"), text, { action: t("machine.force_yes"), danger: true }))) return;
    await api.request("/api/comfyui/switchover", { body: { mode, force: true, ...this.named } });
  }

  setPin() {
    return this.context.api.request("/api/comfyui/pin", { body: { pinned: !this.status.arbiter.pinned, ...this.named } });
  }

  /** Which GPU a request is about; nothing if there is only one. */
  get named() {
    const { gpuName } = this.status;
    return gpuName === null ? {} : { gpu: gpuName };
  }
}

function reasonText(t, switchover) {
  return [switchover.reason, ...(switchover.notes ?? [])].filter(Boolean).join(" · ");
}

function engineWords(t, status) {
  if (status.sketch) return t("machine.sketch_engine");
  const name = status.version ? `ComfyUI ${status.version}` : "ComfyUI";
  return `${name}: ${t(`machine.engine_${status.engine}`)}`;
}

function llmWords(t, status) {
  if (!status.arbiter) return t("machine.no_llms");
  const count = (status.stacks ?? []).reduce((sum, stack) => sum + (stack.loaded?.length ?? 0), 0);
  return t("machine.loaded_count", { count });
}
