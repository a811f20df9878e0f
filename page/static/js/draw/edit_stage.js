// In a wide window the tools for an image are in the middle, where there is room, in turns with the pictures.

import { h } from "../dom.js";
import { t } from "../text.js";

const WIDE = "(min-width: 1081px)";
const TURNS = ["tool", "pictures"];

/**
 * {element, update(panel), showPictures(), unmount()}. `stage`: the element with the pictures; `hasPictures()` says whether
 * there are any; `onkeydown` are the form's keys, which count here too. `update` is called after each change of the panel for
 * images.
 */
export function createEditStage({ stage, hasPictures, onkeydown }) {
  const wide = matchMedia(WIDE);
  const radios = Object.fromEntries(
    TURNS.map((turn) => [turn, h("input", { type: "radio", name: "stage-turn", value: turn, onchange: () => turnTo(turn) })]),
  );
  const choice = h(
    "div",
    { class: "segments stage-turns", role: "radiogroup", "aria-label": t("draw.turns.label") },
    TURNS.map((turn) => h("label", {}, radios[turn], h("span", {}, t(`draw.turns.${turn}`)))),
  );
  const host = h("div", { class: "edit-stage-tool" });
  const element = h("div", { class: "edit-stage", hidden: true, onkeydown }, choice, host);
  let panel = null;
  let turn = "tool";
  let tool = null;

  function update(next) {
    panel = next ?? panel;
    if (!panel) return;
    panel.host = wide.matches ? host : null;
    // Another tool, or another image under it: that is what the user looks for now.
    const now = panel.hasTool ? `${panel.mode} ${panel.images[0].url}` : null;
    if (now !== tool) turn = "tool";
    tool = now;
    show();
  }

  function turnTo(next) {
    turn = next;
    show();
  }

  function show() {
    const isHere = Boolean(tool) && wide.matches;
    element.hidden = !isHere;
    choice.hidden = !hasPictures();
    host.hidden = turn !== "tool";
    radios[turn].checked = true;
    stage.hidden = isHere && turn === "tool";
  }

  const onWidth = () => update();
  wide.addEventListener("change", onWidth);

  return {
    element,
    update,
    showPictures: () => turnTo("pictures"),
    unmount() {
      wide.removeEventListener("change", onWidth);
      if (panel) panel.host = null;
    },
  };
}
