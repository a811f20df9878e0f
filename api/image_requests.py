"""From the fields of a request, in any dialect, to a drawing that is ready to run. For every route that draws."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flask import g, has_request_context, request

from access import PictureUse, Use
from api.connection import disconnect_check
from api.dialect import Endpoint
from api.field_names import canonical_fields, canonical_name
from api.host_rules import own_url
from api.key_limits import check_model, take_pictures
from api.outpaint import Outpainting, check_requested_size, outpaint, take_sides
from api.request_fields import ParsedRequest, has_prompt, read_image_request
from api.request_images import (
    FetchImage,
    RequestImages,
    extract_images,
    extract_input_images,
    remove_empty_images,
)
from api.responses import Links
from api.services import HttpOptions, Services
from api.stored_references import noting_names, reads_stored_images
from api.unsupported_fields import is_off
from compiler import Catalogue, Compiled, Model, Plan, Size, Task, check_image_count, compile_workflow
from compiler.values import TASK_SOURCES, Note
from deadline import time_limit
from errors import (
    MAX_NAMED,
    FieldNotSupported,
    ImageNotSupported,
    ImageRequired,
    ImagesDisabled,
    InvalidValue,
    ModelNotCurated,
    list_names,
)
from generation import Drawing, Pictures, RequestOrigin, with_source
from pictures import InputImage, Sides

GENERATION_PATHS = (
    "/v1/images/generations",
    "/v1-openai/images/generations",
    "/v1-openai/image/generate",
)
EDIT_PATHS = ("/v1/images/edits", "/v1-openai/images/edits", "/v1-openai/image/edit")
_INPUT_IMAGES = ("control_image",)
"""Inputs of this kind that clients know, and that not every model has"""
VARIATION_PATHS = ("/v1/images/variations", "/v1-openai/images/variations")
"""OpenAI's path, then GPUStack's"""

PATHS: Mapping[Task, tuple[str, ...]] = {
    "generate": GENERATION_PATHS,
    "edit": EDIT_PATHS,
    "vary": VARIATION_PATHS,
}


def random_seed() -> int:
    """Below 2^53, so that clients that store numbers as doubles keep the exact seed."""
    return secrets.randbelow(2**53)


def require_images(options: HttpOptions) -> None:
    """Raises ImagesDisabled if this server draws no pictures."""
    if not options.images_enabled:
        raise ImagesDisabled("Image generation is disabled on this server (`images.enabled` is false).")


def links_of(options: HttpOptions) -> Links:
    """The URLs of images for the client of the present request."""
    return Links("" if options.url_style == "relative" else own_url(request, options))


@dataclass
class ImageFields:
    """The fields of one request under their canonical names, its files, and the notes on what was ignored so far.
    `inputs`: of the workflows of its model. `deadline`: the end of the request's time, of `time.monotonic`. `use`: what the
    request uses, None if it is not counted. `seed`: the one for a request that has none."""

    values: dict[str, Any]
    files: tuple[tuple[str, bytes], ...]
    notes: list[Note]
    inputs: Mapping[str, Any]
    endpoint: Endpoint
    services: Services
    catalogue: Catalogue
    deadline: float
    use: Use | None
    seed: int
    fetch: FetchImage
    named: list[str]
    """The names of stored images that the fields name"""
    sent: tuple[InputImage, ...] = ()
    """The images of the request, as they were sent; known once they were read"""

    @classmethod
    def read(
        cls,
        body: Mapping[str, Any],
        services: Services,
        endpoint: Endpoint,
        *,
        files: tuple[tuple[str, bytes], ...] = (),
        is_form: bool = False,
        notes: tuple[Note, ...] = (),
        use: Use | None = None,
        seed: int | None = None,
        fetch: FetchImage | None = None,
    ) -> ImageFields:
        """Read a body as it arrived; in a form everything is text. A request to generations that has an image is an edit.
        `notes`: of earlier steps. `use`: needed where there is no request context. `seed`: None for a random one. `fetch`:
        instead of the one of the services. Raises InvalidValue."""
        deadline = time.monotonic() + services.options.request_timeout_s
        catalogue = services.generator.catalogue()
        inputs = _workflow_inputs(body, catalogue)
        fields, more = canonical_fields(body, inputs, is_form=is_form)
        files = tuple((_file_name(name, inputs), data) for name, data in files)
        if endpoint.task == "generate" and remove_empty_images(fields, inputs):
            endpoint = replace(endpoint, task="edit", path_task="generate")
        use = use or (g.get("use") if has_request_context() else None)
        seed = random_seed() if seed is None else seed
        named: list[str] = []
        fetch = noting_names(fetch or reads_stored_images(services), named)
        notes = (*notes, *more)
        return cls(
            *(
                fields,
                files,
                [*notes],
                inputs,
                endpoint,
                services,
                catalogue,
                deadline,
                use,
                seed,
                fetch,
                named,
            )
        )

    def prepare(self, cancelled: Callable[[], bool] | None = None) -> tuple[ParsedRequest, Drawing]:
        """Check the fields and prepare the drawing. An image that is fetched from a URL takes part of the request's time.
        `cancelled`: whether the client has hung up; needed where there is no request context, as in a stream.

        Raises the errors of `extract_images`, `read_image_request`, `take_pictures` and `Generator.prepare`.
        """
        parsed, pictures, inputs = self._parse()
        taken: list[PictureUse] = []

        def take(plan: Plan) -> None:
            if self.use is not None:
                taken.append(take_pictures(self.use, plan))

        drawing = self.services.generator.prepare(
            parsed.request,
            timeout_s=self.deadline - time.monotonic(),
            pictures=pictures,
            inputs=inputs,
            catalogue=self.catalogue,
            cancelled=cancelled or disconnect_check(request.environ),
            check_plan=take,
        )
        if taken:
            drawing.watcher = taken[0]
        drawing.origin = RequestOrigin(
            owner=self.owner_hash,
            outpaint=parsed.outpaint,
            sources=self._sources(),
            adjusted=parsed.adjusted,
            ignored=parsed.ignored,
        )
        return parsed, drawing

    @property
    def owner_hash(self) -> str:
        """See `Caller.owner_hash`."""
        return self.use.caller.owner_hash if self.use is not None else ""

    def _sources(self) -> tuple[str, ...]:
        """The stored images among the pictures of the request: those that it names, and those of which it has exactly the
        bytes."""
        found = [self.services.store.same_as(image.data, self.owner_hash) for image in self.sent]
        return tuple(dict.fromkeys(name for name in (*self.named, *found) if name))

    def check(self) -> None:
        """Raises what is wrong with the fields, as `prepare` does, without asking the engine."""
        self.compile()

    def compile(self) -> tuple[ParsedRequest, Compiled]:
        """As `check`; the request and its graphs."""
        parsed, pictures, inputs = self._parse()
        return parsed, compile_workflow(with_source(parsed.request, pictures, inputs), self.catalogue)

    def _parse(self) -> tuple[ParsedRequest, Pictures | None, dict[str, InputImage]]:
        """The request, the images to redraw, and those that the workflow has as inputs."""
        fields, catalogue = self.values, self.catalogue
        if (model := _find_model(fields, catalogue)) is not None:
            check_model(self.use, model, catalogue)
            catalogue.licences.check(model)  # before the images are read
        sides = take_sides(fields, self.inputs)
        if sides is not None:
            _check_outpaint(self.endpoint)
        inputs, files = self._input_images(model)
        self.sent = tuple(inputs.values())
        if self.endpoint.task == "generate":
            return self._read_request(self.endpoint, model, inputs, None), None, inputs
        images, outpainting = self._images_to_redraw(files, model, sides)
        has_mask = images.pictures.mask is not None
        endpoint = replace(self.endpoint, task="inpaint") if has_mask else self.endpoint
        parsed = self._read_request(endpoint, model, inputs, images)
        if outpainting is not None:
            if outpainting.is_requested:
                check_requested_size(parsed.request, images)
            parsed = replace(parsed, outpaint=outpainting.facts)
        return parsed, images.pictures, inputs

    def _images_to_redraw(
        self, files: tuple[tuple[str, bytes], ...], model: Model | None, sides: Sides | None
    ) -> tuple[RequestImages, Outpainting | None]:
        """The images of an edit or a variation, extended if it is an outpainting."""
        # Before the images are read: a model that cannot use them is the first thing to say.
        if self.endpoint.path_task == "generate":
            _check_edits(self.values, self.catalogue)
        with time_limit(self.deadline - time.monotonic()):
            images = extract_images(
                self.values,
                files,
                self.fetch,
                path_task=self.endpoint.response_task,
                check_count=self._check_image_count,
            )
        self.sent = (*self.sent, images.pictures.image, *images.pictures.more)
        if model is None or self.endpoint.response_task == "vary":
            return images, None
        outpainting = outpaint(images, sides, model)
        return (images, None) if outpainting is None else (outpainting.images, outpainting)

    def _read_request(
        self,
        endpoint: Endpoint,
        model: Model | None,
        inputs: Mapping[str, InputImage],
        images: RequestImages | None,
    ) -> ParsedRequest:
        """The request, for a task that the model supports. `images`: those to redraw."""
        endpoint = _with_supported_task(endpoint, self.values, self.catalogue)
        if model is not None:
            for name in inputs:
                if name not in self.catalogue.image_inputs(model, endpoint.task):
                    raise _no_such_image(name, model, self.catalogue, endpoint.task)
        options = self.services.options
        return read_image_request(
            self.values,
            endpoint=endpoint,
            request_id=str(uuid.uuid4()),
            random_seed=lambda: self.seed,
            default_response_format=options.default_response_format,
            url_needs_file=options.url_style != "data",
            inputs=self.inputs,
            image_size=None
            if images is None
            else Size(images.pictures.image.width, images.pictures.image.height),
            notes=(*self.notes, *(images.notes if images else ())),
        )

    def _input_images(
        self, model: Model | None
    ) -> tuple[dict[str, InputImage], tuple[tuple[str, bytes], ...]]:
        """The pictures that are inputs of the workflow, and the other files. Raises FieldNotSupported for a picture that
        only other models take."""
        catalogue, fields = self.catalogue, self.values
        if model is None:
            return {}, self.files
        names = catalogue.image_inputs(model)
        sent = {*fields, *(name.removesuffix("[]") for name, data in self.files if data)}
        for name in sorted(sent - set(names)):
            if name in _INPUT_IMAGES and name not in self.inputs and not is_off(fields.get(name, True)):
                raise _no_such_image(name, model, catalogue)
        with time_limit(self.deadline - time.monotonic()):
            return extract_input_images(names, fields, self.files, self.fetch)

    def _check_image_count(self, number: int) -> None:
        """Raises ImageCountNotAllowed if the model takes so many images for none of the tasks that this request may be."""
        model = _find_model(self.values, self.catalogue)
        if model is None:
            return
        tasks: list[Task] = ["vary"] if self.endpoint.task == "vary" else ["edit", "inpaint"]
        if not has_prompt(self.values):
            tasks.append("vary")
        check_image_count(number, model, self.catalogue, tasks)


def _file_name(name: str, inputs: Mapping[str, Any]) -> str:
    """The canonical name for a file that is one of the known input images; for others `name`."""
    known = canonical_name(name.removesuffix("[]"), inputs)
    return known if known in _INPUT_IMAGES else name


def _workflow_inputs(body: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    """The inputs of the workflows of the model that the request names (name -> JSON Schema); of the default model if it
    names an unknown one, which is refused later."""
    extra = body.get("extra_body")
    name = body.get("model") or (extra.get("model") if isinstance(extra, Mapping) else None)
    try:
        model = catalogue.find(name if isinstance(name, str) else None)
    except ModelNotCurated:
        model = catalogue.find(None)
    workflows = [catalogue.workflows[workflow] for workflow in model.workflows.values()]
    return {name: rule.schema for workflow in workflows for name, rule in workflow.inputs.items()}


def _check_edits(fields: Mapping[str, Any], catalogue: Catalogue) -> None:
    """Raises ImageNotSupported for a request to generations that has an image if its model draws from a prompt only."""
    model = _find_model(fields, catalogue)
    if model is None or set(model.workflows) - {"generate"}:
        return
    others = [other.id for other in catalogue.visible_models if "edit" in catalogue.drawable_tasks(other)]
    names = f" with a model that edits images: {list_names(others)}" if others else ""
    raise ImageNotSupported(
        f"The model {model.id!r} only draws from a prompt and cannot use the image. Leave it out, or send the request to "
        f"{EDIT_PATHS[0]}{names or '; no model here edits images yet'}.",
        param="image",
        model=model.id,
        models=others[:MAX_NAMED],
    )


def _no_such_image(
    name: str, model: Model, catalogue: Catalogue, task: Task | None = None
) -> FieldNotSupported:
    others = [
        other.id
        for other in catalogue.visible_models
        if any(name in catalogue.image_inputs(other, each) for each in ([task] if task else other.workflows))
    ]
    where = f" for the task {task}" if task else ""
    remedy = f"choose a model that does: {list_names(others)}" if others else "no model of this server does"
    return FieldNotSupported(
        f"{model.id} takes no `{name}`{where}. Leave it out, or {remedy}.",
        param=name,
        models=others[:MAX_NAMED],
    )


def _check_outpaint(endpoint: Endpoint) -> None:
    """Raises ImageRequired or FieldNotSupported for a request that has `outpaint` and cannot be an edit."""
    if endpoint.task == "generate":
        raise ImageRequired(
            f"`outpaint` extends an image, and the request has none. Send one as `image`, best to {EDIT_PATHS[0]}.",
            param="image",
        )
    if endpoint.response_task == "vary":
        raise FieldNotSupported(
            f"A variation redraws the whole image and cannot extend it. Send it to {EDIT_PATHS[0]} with a prompt.",
            param="outpaint",
        )


def _with_supported_task(endpoint: Endpoint, fields: Mapping[str, Any], catalogue: Catalogue) -> Endpoint:
    """The endpoint with a task that the requested model supports: an edit without a prompt is a variation if the model
    makes these but no edits. Raises InvalidValue, which names the paths that the model supports."""
    model = _find_model(fields, catalogue)
    if model is None or endpoint.task in model.workflows:
        return endpoint
    if endpoint.task == "edit" and "vary" in model.workflows and not has_prompt(fields):
        return replace(endpoint, task="vary", path_task=endpoint.response_task)
    index = 1 if endpoint.is_gpustack else 0
    paths = {**PATHS, "inpaint": EDIT_PATHS}
    supported = "; or ".join(
        f"{task}: send {TASK_SOURCES[task]} to {paths[task][index]}" for task in model.workflows
    )
    raise InvalidValue(
        f"The model {model.id!r} does not support the task {endpoint.task!r}, only {supported}.",
        param="model",
    )


def _find_model(fields: Mapping[str, Any], catalogue: Catalogue) -> Model | None:
    """The requested model; None if there is no such model, which is reported after the other fields."""
    name = fields.get("model", "")
    try:
        return catalogue.find(name) if isinstance(name, str) else None
    except ModelNotCurated:
        return None
