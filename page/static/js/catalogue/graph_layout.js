// Where the nodes of a graph lie: columns from what is loaded to what is saved, in each column an order with few crossing
// links. Pure arithmetic.

export const NODE_WIDTH = 216;
export const HEAD = 40;
export const ROW = 24;
const COLUMN_GAP = 48;
const NODE_GAP = 24;
const SWEEPS = 6;

/** Height of a node with `rows` inputs. */
export function nodeHeight(rows) {
  return HEAD + rows * ROW + 8;
}

/** Column of each node: one behind the last of those that it takes something from. `nodes`: [{id, inputs: [{link}]}]. */
export function columnsOf(nodes) {
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const columns = new Map();
  const visit = (node, path) => {
    if (columns.has(node.id)) return columns.get(node.id);
    if (path.has(node.id)) return 0; // a circle, which no graph has that was checked
    path.add(node.id);
    const before = sourcesOf(node).filter((id) => byId.has(id)).map((id) => visit(byId.get(id), path));
    path.delete(node.id);
    const column = before.length ? Math.max(...before) + 1 : 0;
    columns.set(node.id, column);
    return column;
  };
  for (const node of nodes) visit(node, new Set());
  // What needs nothing lies just before what uses it, so that its links are short.
  for (const node of nodes) {
    if (sourcesOf(node).length) continue;
    const users = nodes.filter((other) => sourcesOf(other).includes(node.id)).map((other) => columns.get(other.id));
    if (users.length) columns.set(node.id, Math.min(...users) - 1);
  }
  return columns;
}

function sourcesOf(node) {
  return node.inputs.filter((input) => input.link).map((input) => input.link[0]);
}

/** `{boxes: Map(id -> {x, y, width, height}), width, height}`; `rowsOf(node)`: how many rows its box shows. */
export function layOutGraph(nodes, rowsOf) {
  const columns = columnsOf(nodes);
  const lists = [];
  for (const node of nodes) (lists[columns.get(node.id)] ??= []).push(node);
  const order = sorted(lists.filter(Boolean), nodes);
  const heights = order.map((list) => list.reduce((sum, node) => sum + nodeHeight(rowsOf(node)) + NODE_GAP, -NODE_GAP));
  const height = Math.max(0, ...heights);
  const boxes = new Map();
  order.forEach((list, column) => {
    let y = (height - heights[column]) / 2;
    for (const node of list) {
      const box = { x: column * (NODE_WIDTH + COLUMN_GAP), y, width: NODE_WIDTH, height: nodeHeight(rowsOf(node)) };
      boxes.set(node.id, box);
      y += box.height + NODE_GAP;
    }
  });
  return { boxes, width: order.length * (NODE_WIDTH + COLUMN_GAP) - COLUMN_GAP, height };
}

/** Each column by the mean place of the neighbours in the columns before and behind, several times. */
function sorted(lists, nodes) {
  const places = new Map();
  const note = (list) => list.forEach((node, index) => places.set(node.id, (index + 0.5) / list.length));
  lists.forEach(note);
  const users = new Map(nodes.map((node) => [node.id, []]));
  for (const node of nodes) for (const id of sourcesOf(node)) users.get(id)?.push(node.id);
  const mean = (ids, fallback) => {
    const known = ids.map((id) => places.get(id)).filter((place) => place !== undefined);
    return known.length ? known.reduce((sum, place) => sum + place, 0) / known.length : fallback;
  };
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    const isForward = sweep % 2 === 0;
    const turn = isForward ? lists : [...lists].reverse();
    for (const list of turn) {
      const weights = new Map(
        list.map((node) => [node.id, mean(isForward ? sourcesOf(node) : users.get(node.id), places.get(node.id))]),
      );
      list.sort((a, b) => weights.get(a.id) - weights.get(b.id));
      note(list);
    }
  }
  return lists;
}
