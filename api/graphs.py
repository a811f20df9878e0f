"""POST /api/graph: the graph that a request would run, with the origin of its values or as a file of ComfyUI's editor; and
saving that file into ComfyUI. Nothing is drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from flask import Blueprint, Response, jsonify, request

from api.audit import recording
from api.graph_requests import CompiledRequest, compile_request
from api.image_requests import require_images
from api.json_body import json_request
from api.paths import GRAPH, SAVED_GRAPH
from api.services import Services
from compiler import Catalogue, Compiled
from compiler.graph import render_nodes
from engine import workflow_file_name
from errors import EaselError, InvalidValue
from generation import note_entries

_FORMS = ("explain", "editor")
_MAX_MODEL_CHARS = 150
"""Of the id of a model in the name of a file"""


def graphs_blueprint(services: Services) -> Blueprint:
    """The routes."""
    routes = Blueprint("graphs", __name__)
    routes.add_url_rule(GRAPH, "graph", lambda: _graph(services), methods=["POST"])
    routes.add_url_rule(SAVED_GRAPH, "save_graph", lambda: _save(services), methods=["POST"])
    return routes


def _graph(services: Services) -> Response:
    require_images(services.options)
    body = json_request(request)
    form = body.pop("as", "explain")
    if form not in _FORMS:
        raise InvalidValue(f"`as` must be one of {', '.join(_FORMS)}.", param="as", allowed=list(_FORMS))
    compiled = compile_request(services, body)
    return jsonify(_explained(compiled) if form == "explain" else _for_editor(services, compiled))


def _save(services: Services) -> tuple[Response, int]:
    """Saves the file where ComfyUI's editor lists its workflows."""
    require_images(services.options)
    body = json_request(request)
    given = body.pop("file_name", None)
    if given is not None and not isinstance(given, str):
        raise InvalidValue("`file_name` must be a text.", param="file_name")
    name = None if given is None else workflow_file_name(given, param="file_name")
    document = _for_editor(services, compile_request(services, body))
    target = {"model": document["model"], "task": document["task"], "file_name": name}
    with recording(services, "workflows.save", **target) as set_result:
        engine = services.engine()
        data = json.dumps(document.pop("editor_file")).encode()
        saved = engine.save_workflow(name or document["file_name"], data, numbered=name is None)
        set_result(saved)
    return jsonify({**document, "file_name": saved, "sketch": engine.is_sketch}), 201


# --- documents -------------------------------------------------------------------------------------


def _facts(request: CompiledRequest) -> dict[str, Any]:
    plan = request.compiled.plan
    return {
        "model": plan.model,
        "workflow": plan.workflow,
        "task": plan.task,
        "size": str(plan.final_size),
        "jobs": len(request.compiled.graphs),
        "adjusted": note_entries((*request.parsed.adjusted, *plan.adjusted)),
        "ignored": note_entries((*request.parsed.ignored, *plan.ignored)),
    }


def _for_editor(services: Services, request: CompiledRequest) -> dict[str, Any]:
    plan = request.compiled.plan
    file = services.generator.editor_file(request.compiled, request.catalogue)
    return {
        **_facts(request),
        "file_name": workflow_file_name(f"easel-{plan.model[:_MAX_MODEL_CHARS]}-{plan.task}"),
        "editor_file": file.document,
        "notes": list(file.notes),
    }


def _explained(request: CompiledRequest) -> dict[str, Any]:
    nodes = request.compiled.graphs[0].nodes
    origins = _origins(request.compiled, request.catalogue)
    return {
        **_facts(request),
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
