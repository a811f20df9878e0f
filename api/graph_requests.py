"""Requests for a graph: the body of one for a picture, whose images may be left out. Nothing is fetched or drawn."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Any, get_args

from flask import g

from api.dialect import Endpoint
from api.image_requests import ImageFields
from api.key_limits import may_use_model
from api.request_fields import ParsedRequest, read_image_request
from api.request_images import is_image_name
from api.services import Services
from compiler import Catalogue, Compiled, Model, SourceImage, Task, compile_workflow
from errors import ImageUrlRefused, InvalidValue, ModelNotCurated

_TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class CompiledRequest:
    """What a request means, with the catalogue that it was compiled with."""

    parsed: ParsedRequest
    compiled: Compiled
    catalogue: Catalogue


def compile_request(services: Services, body: dict[str, Any]) -> CompiledRequest:
    """Compile the request in `body`, from which `task` is removed. Raises what a request for a picture raises before it is
    drawn."""
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
    return CompiledRequest(parsed, compiled, fields.catalogue)


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
