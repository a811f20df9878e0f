"""POST /api/graph: the graph that a request would run, with the origin of its values. Nothing is drawn."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

from flask import Blueprint, Response, g, jsonify, request

from api.dialect import Endpoint
from api.image_requests import ImageFields, require_images
from api.json_body import json_request
from api.key_limits import may_use_model
from api.paths import GRAPH
from api.request_fields import ParsedRequest, read_image_request
from api.request_images import is_image_name
from api.services import Services
from compiler import Catalogue, Compiled, Model, SourceImage, Task, compile_workflow
from compiler.graph import render_nodes
from errors import EaselError, ImageUrlRefused, InvalidValue, ModelNotCurated
from generation import note_entries

_TASKS: tuple[Task, ...] = get_args(Task)


def graphs_blueprint(services: Services) -> Blueprint:
    """The route."""
    routes = Blueprint("graphs", __name__)
    routes.add_url_rule(GRAPH, "graph", lambda: _graph(services), methods=["POST"])
    return routes


def _graph(services: Services) -> Response:
    require_images(services.options)
    body = json_request(request)
    task = _take_task(body)
    fields = ImageFields.read(body, services, Endpoint(task or "generate"), fetch=_refuse_url)
    name = fields.values.get("model")
    # A model of the wrong type is refused with the other fields.
    model = fields.catalogue.find(name if isinstance(name, str) else None)
    if not may_use_model(g.caller, model, fields.catalogue):
        raise ModelNotCurated(f"The key {g.caller.name} may not use this model.", param="model")
    has_image = any(is_image_name(name) and value for name, value in fields.values.items())
    if task in (None, "generate") or has_image:
        parsed, compiled = fields.compile()
    else:
        parsed, compiled = _compile_without_image(fields, task, model)
    return jsonify(_document(parsed, compiled, fields.catalogue))


def _take_task(body: dict[str, Any]) -> Task | None:
    """Remove `task` from the body. Raises InvalidValue."""
    task = body.pop("task", None)
    if task is not None and task not in _TASKS:
        raise InvalidValue(f"`task` must be one of {', '.join(_TASKS)}.", param="task", allowed=list(_TASKS))
    return next((known for known in _TASKS if known == task), None)


def _refuse_url(url: str, param: str) -> bytes:
    raise ImageUrlRefused(
        "A graph needs no picture, so none is fetched: name the `task` and leave the image out, or send a data: URL.",
        param=param,
    )


def _compile_without_image(fields: ImageFields, task: Task, model: Model) -> tuple[ParsedRequest, Compiled]:
    """The graph of an edit whose images are not there: files of these names stand for them, with the model's own size."""
    size = model.size.default
    parsed = read_image_request(
        fields.values,
        endpoint=Endpoint(task),
        request_id=str(uuid.uuid4()),
        random_seed=lambda: fields.seed,
        inputs=fields.inputs,
        image_size=size,
        notes=tuple(fields.notes),
    )
    count = fields.catalogue.image_counts(model).get(task)
    source = SourceImage(
        size,
        "image.png",
        "mask.png" if task == "inpaint" else None,
        tuple(f"image-{number}.png" for number in range(2, (count.min if count else 1) + 1)),
    )
    return parsed, compile_workflow(replace(parsed.request, source=source), fields.catalogue)


def _document(parsed: ParsedRequest, compiled: Compiled, catalogue: Catalogue) -> dict[str, Any]:
    plan, nodes = compiled.plan, compiled.graphs[0].nodes
    origins = _origins(compiled, catalogue)
    return {
        "model": plan.model,
        "workflow": plan.workflow,
        "task": plan.task,
        "size": str(plan.final_size),
        "jobs": len(compiled.graphs),
        "graph": nodes,
        "nodes": [
            {
                "id": id,
                "class": node["class_type"],
                "title": node.get("_meta", {}).get("title") or node["class_type"],
                "inputs": [
                    _input(name, value, origins.get((id, name))) for name, value in node["inputs"].items()
                ],
            }
            for id, node in nodes.items()
        ],
        "adjusted": note_entries((*parsed.adjusted, *plan.adjusted)),
        "ignored": note_entries((*parsed.ignored, *plan.ignored)),
    }


def _input(name: str, value: Any, origin: str | None) -> dict[str, Any]:
    is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
    return {
        "name": name,
        "value": None if is_link else value,
        "link": value if is_link else None,
        "origin": None if is_link else origin,
    }


# --- origins ---------------------------------------------------------------------------------------


def _origins(compiled: Compiled, catalogue: Catalogue) -> dict[tuple[str, str], str]:
    """(node id, input) -> the value of the request or the catalogue that it follows, such as `steps (model)`. Found by
    rendering the template again with another value for one variable at a time: the inputs that change follow it."""
    plan, job = compiled.plan, compiled.graphs[0].job
    values: dict[str, Any] = {name: planned.value for name, planned in plan.values.items()}
    values |= {"seed": job.seed, "batch": job.batch, "prefix": f"{plan.prefix}-0"}
    base = render_nodes(plan.template, values, catalogue)
    found: dict[tuple[str, str], str] = {}
    for label, changed in _variations(values):
        name = label.partition(".")[0]
        origin = plan.values[name].origin if name in plan.values else None
        try:
            nodes = render_nodes(plan.template, {**values, name: changed}, catalogue)
        except EaselError:
            continue  # the template does not take this value
        for place in _differences(base, nodes):
            found.setdefault(place, f"{label} ({origin})" if origin else label)
    return found


def _variations(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A variable, or a part of one, and another value for the variable."""
    for name, value in values.items():
        if name == "task":
            continue
        if name == "files":
            for role, file in value.items():
                yield f"files.{role}", {**value, role: f"another-{file}"}
        elif name == "loras":
            for index, lora in enumerate(value):
                for part in ("strength", "file"):
                    others = [*value[:index], {**lora, part: _another(lora[part])}, *value[index + 1 :]]
                    yield f"loras.{lora['id']}", others
        elif name == "images":
            for index, image in enumerate(value):
                yield f"images.{index + 1}", [*value[:index], f"another-{image}", *value[index + 1 :]]
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            yield name, _another(value)


def _another(value: Any) -> Any:
    if isinstance(value, str):
        return f"another-{value}"
    return value + 1 if isinstance(value, int) else value + 0.01


def _differences(base: Mapping[str, Any], nodes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for id, node in base.items():
        other = nodes.get(id)
        if other is None or other["class_type"] != node["class_type"]:
            continue
        for name, value in node["inputs"].items():
            if name in other["inputs"] and other["inputs"][name] != value:
                yield id, name
