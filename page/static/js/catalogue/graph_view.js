// <easel-graph>: a compiled graph as boxes and links that can be moved and enlarged, and as a list for the keyboard and
// for screen readers. `show(answer)` takes the answer of POST /api/graph.

import { h, iconButton, svg } from "../dom.js";
import { t } from "../text.js";
import { HEAD, layOutGraph, ROW } from "./graph_layout.js";

const MOST_ROWS = 7;
const SMALLEST = 0.15;
const LARGEST = 2;
const STEP = 1.25;
const MARGIN = 32;
const TOOLS = 48;

class EaselGraph extends HTMLElement {
  connectedCallback() {
    if (this.canvas) return;
    this.links = svg("svg", { class: "graph-links", "aria-hidden": "true" });
    this.layer = h("div", { class: "graph-layer" }, this.links);
    this.canvas = h("div", {
      class: "graph-canvas",
      tabindex: "0",
      role: "group",
      "aria-label": t("catalogue.graph_canvas"),
      onkeydown: (event) => this.pressed(event),
      onwheel: (event) => this.wheeled(event),
    });
    this.canvas.append(this.layer);
    this.list = h("div", { class: "graph-list", hidden: true });
    this.chosen = h("div", { class: "graph-chosen", hidden: true });
    this.asList = h("button", { type: "button", class: "button small", "aria-pressed": "false", onclick: () => this.toggleList() }, t("catalogue.as_list"));
    this.append(
      h(
        "div",
        { class: "graph-tools" },
        iconButton("minus", t("catalogue.smaller"), { onclick: () => this.zoom(1 / STEP) }),
        iconButton("add", t("catalogue.larger"), { onclick: () => this.zoom(STEP) }),
        iconButton("fullscreen", t("catalogue.fit"), { onclick: () => this.fit() }),
        this.asList,
      ),
      this.canvas,
      this.chosen,
      this.list,
    );
    this.pan();
    this.sizing = new ResizeObserver(() => {
      if (this.isMoved || !this.size) return;
      this.setHeight();
      this.fit();
    });
    this.sizing.observe(this.canvas);
  }

  disconnectedCallback() {
    this.sizing?.disconnect();
    this.sizing = null;
  }

  show({ nodes }) {
    this.nodes = nodes;
    this.selected = null;
    this.isMoved = false;
    const { boxes, width, height } = layOutGraph(nodes, (node) => Math.min(MOST_ROWS + 1, node.inputs.length));
    this.boxes = boxes;
    this.size = { width, height };
    this.links.setAttribute("width", width);
    this.links.setAttribute("height", height);
    this.links.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.layer.replaceChildren(this.links, ...nodes.map((node) => this.node(node)));
    this.drawLinks();
    this.titles = new Map(nodes.map((node) => [node.id, node.title || node.class]));
    this.list.replaceChildren(...nodes.map((node) => this.item(node)));
    this.showChosen();
    this.setHeight();
    this.fit();
  }

  /** As high as the graph is when all of its width shows, within limits. */
  setHeight() {
    const width = this.canvas.clientWidth || 800;
    const scale = Math.max(0.5, Math.min(1, (width - MARGIN) / this.size.width));
    const height = Math.min(560, Math.max(280, this.size.height * scale + MARGIN + TOOLS));
    this.canvas.style.setProperty("block-size", `${height}px`);
  }

  node(node) {
    const box = this.boxes.get(node.id);
    const shown = node.inputs.slice(0, MOST_ROWS);
    const more = node.inputs.length - shown.length;
    const element = h(
      "div",
      { class: "graph-node", dataset: { id: node.id }, onclick: () => this.select(node.id) },
      h("div", { class: "graph-node-head", title: node.class }, h("span", {}, node.title || node.class), h("span", { class: "graph-node-id" }, node.id)),
      ...shown.map((input) => this.row(input)),
      more > 0 ? h("div", { class: "graph-row is-more" }, t("catalogue.more_inputs", { count: more })) : null,
    );
    for (const [name, value] of [["left", box.x], ["top", box.y], ["width", box.width], ["height", box.height]]) {
      element.style.setProperty(name, `${value}px`);
    }
    return element;
  }

  row(input) {
    const value = input.link ? null : valueText(input.value);
    const title = input.link ? undefined : [value, input.origin].filter(Boolean).join("\n");
    return h(
      "div",
      { class: input.link ? "graph-row is-link" : "graph-row", title, dataset: { origin: originKind(input.origin) } },
      h("span", { class: "graph-row-name" }, input.name),
      value === null ? null : h("span", { class: "graph-row-value", dir: "auto" }, value),
    );
  }

  drawLinks() {
    const paths = [];
    for (const node of this.nodes) {
      node.inputs.forEach((input, index) => {
        const from = input.link && this.boxes.get(input.link[0]);
        if (!from) return;
        const to = this.boxes.get(node.id);
        const x1 = from.x + from.width;
        const y1 = from.y + HEAD / 2;
        const y2 = to.y + HEAD + (Math.min(index, MOST_ROWS) + 0.5) * ROW;
        const bend = Math.max(32, (to.x - x1) / 2);
        const d = `M${x1} ${y1}C${x1 + bend} ${y1} ${to.x - bend} ${y2} ${to.x} ${y2}`;
        paths.push(svg("path", { d, "data-from": input.link[0], "data-to": node.id }));
      });
    }
    this.links.replaceChildren(...paths);
  }

  /** Mark a node and its links; again, or null: none. */
  select(id) {
    this.selected = this.selected === id ? null : id;
    for (const element of this.layer.querySelectorAll(".graph-node")) {
      element.classList.toggle("is-selected", element.dataset.id === this.selected);
    }
    for (const path of this.links.children) {
      const isOwn = path.dataset.from === this.selected || path.dataset.to === this.selected;
      path.classList.toggle("is-own", this.selected !== null && isOwn);
    }
    this.showChosen();
  }

  /** A node with all its inputs and what decided them. */
  item(node) {
    const { titles } = this;
    const value = (input) =>
      input.link
        ? t("catalogue.from_node", { node: `${input.link[0]}: ${titles.get(input.link[0]) ?? ""}` })
        : valueText(input.value);
    const columns = ["input", "value", "origin"].map((name) => h("th", { scope: "col" }, t(`catalogue.list_${name}`)));
    const row = (input) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, input.name),
        h("td", { dir: "auto" }, value(input)),
        h("td", { class: "origin", dataset: { origin: originKind(input.origin) } }, input.origin ?? ""),
      );
    const isNamed = node.title && node.title !== node.class;
    return h(
      "section",
      { class: "graph-item" },
      h("h3", {}, `${node.id}: ${titles.get(node.id)}`, isNamed ? h("code", {}, node.class) : null),
      h("table", {}, h("thead", {}, h("tr", {}, ...columns)), h("tbody", {}, ...node.inputs.map(row))),
    );
  }

  showChosen() {
    const node = this.nodes.find((each) => each.id === this.selected);
    this.chosen.hidden = !node || this.canvas.hidden;
    this.chosen.replaceChildren(...(node ? [this.item(node)] : []));
  }

  toggleList() {
    const isList = this.list.hidden;
    this.list.hidden = !isList;
    this.canvas.hidden = isList;
    this.showChosen();
    this.asList.setAttribute("aria-pressed", String(isList));
    for (const button of this.querySelectorAll(".graph-tools .icon-button")) button.disabled = isList;
  }

  // --- moving ------------------------------------------------------------------------------------

  fit() {
    if (!this.size || !this.canvas.clientWidth) return;
    const { clientWidth, clientHeight } = this.canvas;
    const height = clientHeight - TOOLS;
    const scale = Math.min((clientWidth - MARGIN) / this.size.width, (height - MARGIN) / this.size.height, 1);
    // A graph that would be too small to read begins at its start.
    this.scale = Math.max(clientWidth < 700 ? 0.5 : SMALLEST, scale);
    this.x = Math.max(MARGIN / 2, (clientWidth - this.size.width * this.scale) / 2);
    this.y = TOOLS + (height - this.size.height * this.scale) / 2;
    this.isMoved = false;
    this.place();
  }

  place() {
    this.layer.style.setProperty("transform", `translate(${this.x}px, ${this.y}px) scale(${this.scale})`);
  }

  /** Enlarge around a point of the canvas; its middle if none is given. */
  zoom(by, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const scale = Math.min(LARGEST, Math.max(SMALLEST, this.scale * by));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.isMoved = true;
    this.place();
  }

  move(x, y) {
    this.x += x;
    this.y += y;
    this.isMoved = true;
    this.place();
  }

  pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = {
      ArrowLeft: () => this.move(64, 0),
      ArrowRight: () => this.move(-64, 0),
      ArrowUp: () => this.move(0, 64),
      ArrowDown: () => this.move(0, -64),
      "+": () => this.zoom(STEP),
      "-": () => this.zoom(1 / STEP),
      0: () => this.fit(),
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  }

  /** The wheel scrolls the page, as everywhere; with Ctrl, as a pinch is reported, it enlarges. */
  wheeled(event) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const box = this.canvas.getBoundingClientRect();
    this.zoom(Math.exp(-event.deltaY / 200), event.clientX - box.left, event.clientY - box.top);
  }

  pan() {
    const pointers = new Map();
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = pointers.get(event.pointerId);
      if (!last) return;
      const now = [event.clientX, event.clientY];
      if (pointers.size === 1) {
        if (!canvas.hasPointerCapture(event.pointerId) && Math.hypot(now[0] - last[0], now[1] - last[1]) < 4) return;
        canvas.setPointerCapture(event.pointerId);
        this.move(now[0] - last[0], now[1] - last[1]);
      } else {
        const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
        const before = Math.hypot(last[0] - other[0], last[1] - other[1]);
        const after = Math.hypot(now[0] - other[0], now[1] - other[1]);
        const box = canvas.getBoundingClientRect();
        if (before > 0) this.zoom(after / before, (now[0] + other[0]) / 2 - box.left, (now[1] + other[1]) / 2 - box.top);
      }
      pointers.set(event.pointerId, now);
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
  }
}

/** A value as it is in the graph; texts without quotes. */
export function valueText(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** What a value was decided by, as one of the kinds that have a colour. */
export function originKind(origin) {
  const text = (origin ?? "").toLowerCase();
  for (const kind of ["request", "model", "workflow", "random", "template", "adjusted", "default"]) if (text.includes(kind)) return kind;
  return text ? "other" : "";
}

customElements.define("easel-graph", EaselGraph);
