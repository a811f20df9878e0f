// What can be done to a finished picture in one click, as far as models that are here can.

const TOOLS = { upscale: "upscaler", background: "background removal" };

/**
 * The actions for a picture that `model` drew: [{id: "edit"|"vary"|"upscale"|"background", model, fields}]. `models`: those
 * of GET /v1/models. "edit" opens the picture in the form; the others send `fields` with it to /v1/images/edits, or
 * "vary" to /v1/images/variations. `size` ({width, height}) leaves out tools for which the picture is too large.
 */
export function resultActions(model, models, size) {
  const actions = [{ id: "edit", model: null, fields: null }];
  if (model?.tasks?.includes("vary")) actions.push({ id: "vary", model, fields: { model: model.id } });
  for (const [id, family] of Object.entries(TOOLS)) {
    const tool = models.find((each) => each.family === family && isUsable(each) && takes(each, size));
    if (tool) actions.push({ id, model: tool, fields: { model: tool.id } });
  }
  return actions;
}

function isUsable({ tasks, licence, engine }) {
  return tasks.includes("vary") && licence?.state !== "denied" && engine?.state === "ready";
}

function takes({ size }, { width, height }) {
  const [maxWidth, maxHeight] = size.max.split("x").map(Number);
  return width <= maxWidth && height <= maxHeight && width * height <= size.max_pixels;
}
