import { h } from "../dom.js";

export async function mount(container, { t }) {
  container.append(h("h1", {}, t("machine.title")));
  return { unmount() {} };
}
