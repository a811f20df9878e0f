"""Every way Easel can fail, by name, with the data it carries. Knows no HTTP: `api/errors.py` gives each
class its status, and `docs/api.md` prints the table made from `code`, `when` and `remedy`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class EaselError(Exception):
    """A fault with a stable code.

    `message` is for the person who must fix it. `param` is the request field at fault, if one is.
    `details` is plain JSON: never a traceback, a path of this host or a secret.
    """

    code: ClassVar[str] = "server.internal"
    when: ClassVar[str] = "Something failed that should not have."
    remedy: ClassVar[str] = "Look for the request id in the server's log and report it."
    retry: ClassVar[bool] = False
    """Whether the same request may succeed later, so that a client's automatic retry makes sense."""

    def __init__(self, message: str, *, param: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.details = details


def shorten(text: str, limit: int = 80) -> str:
    """`text` as a message repeats it: at most `limit` characters, the last an ellipsis where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def every_error(root: type[EaselError] = EaselError) -> Iterator[type[EaselError]]:
    """Every error class with a code of its own, in the order of this file; the general one first."""
    if root is EaselError:
        yield root
    for kind in root.__subclasses__():
        if "code" in vars(kind):
            yield kind
        yield from every_error(kind)


def error_of(code: str, message: str, **details: Any) -> EaselError:
    """The error of a code that another process gave; one whose code is not known is a plain EaselError."""
    kind = next((kind for kind in every_error() if kind.code == code), EaselError)
    return kind(message, **details)


# --- the request ----------------------------------------------------------------------------------


class InvalidRequest(EaselError):
    """The request cannot be read at all."""

    code = "request.malformed"
    when = "The body is not the JSON object or the form that was announced, or it broke off."
    remedy = "Send a whole JSON object or form."


class NotJson(InvalidRequest):
    code = "request.not_json"
    when = "A JSON route got another content type."
    remedy = "Send `Content-Type: application/json`."


class WrongContentType(InvalidRequest):
    code = "request.wrong_content_type"
    when = "A route that takes forms got neither a form nor JSON."
    remedy = "Send `multipart/form-data` or `application/json`."


class TooLarge(InvalidRequest):
    code = "request.too_large"
    when = "The body is larger than `max_request_mb`, or one of its texts than 30 MB."
    remedy = "Send less, or raise the setting."


class BodyTimeout(InvalidRequest):
    code = "request.body_timeout"
    when = "The body did not arrive: nothing came for some seconds before its end."
    remedy = "Send the body at once."


class RangeNotSatisfiable(EaselError):
    code = "request.range_not_satisfiable"
    when = "A `Range` lies outside the image."
    remedy = "`Content-Range` tells how long it is."


class InvalidValue(EaselError):
    """A field has a value that is not allowed; `param` names it."""

    code = "request.invalid_value"
    when = "A field has a wrong type, a value out of its range or one that is not in its list."
    remedy = "`param` names the field, the message what is allowed."


class PromptRequired(EaselError):
    code = "image.prompt_required"
    when = "`prompt` is missing, empty or blank."
    remedy = "Send a prompt."


class SizeNotAllowed(InvalidValue):
    code = "image.size_not_allowed"
    when = "`size` is not `WxH` or is outside the model's limits."
    remedy = "The details give the model's limits and suggested sizes."


class ModelNotCurated(EaselError):
    code = "image.model_not_curated"
    when = "`model` is neither in the catalogue nor an alias of a model that is."
    remedy = "Use an id that `GET /v1/models` lists, or add the model to `catalogue.yaml`."


class ImageRequired(EaselError):
    code = "image.image_required"
    when = "An edit or a variation came without an image."
    remedy = "Send a file in the field `image`, or `images: [{image_url: data:…}]` in JSON."


class InvalidImage(InvalidValue):
    """`param` is `image` or `mask`."""

    code = "image.invalid_image"
    when = "An image or mask that was sent is empty, damaged, no picture, too large to decode, or of an unknown format."
    remedy = "Send a whole PNG, JPEG, WebP, GIF, BMP or AVIF; the message says what is wrong."


class ImageUrlRefused(InvalidValue):
    code = "image.url_refused"
    when = "An image was named by an http(s) URL, and `images.fetch_urls` is off or the URL leads to no public address."
    remedy = "Send the image itself, or as a `data:` URL."


class ImageUrlFailed(InvalidValue):
    code = "image.url_failed"
    when = "The server at an image's URL did not answer with a picture in time and within the limits."
    remedy = "Send the image itself, or as a `data:` URL."


class ImagesDisabled(EaselError):
    code = "image.disabled"
    when = "`images.enabled` is false."
    remedy = "Set it to true."


class ImageNotFound(EaselError):
    code = "image.not_found"
    when = "No kept image has this name: it never had, or it was the least recently used and had to go."
    remedy = "Ask for the picture again, or raise `image_store.max_count` and `image_store.max_mb`."


class RouteNotFound(EaselError):
    code = "route.not_found"
    when = "There is nothing at this path."
    remedy = "See `docs/api.md` or `GET /openapi.json`."


class MethodNotAllowed(EaselError):
    code = "route.method_not_allowed"
    when = "The path exists, the method does not."
    remedy = "The `Allow` header names the methods."


class InvalidKey(EaselError):
    code = "auth.invalid_key"
    when = "API keys are set and the request brought none of them."
    remedy = "Send `Authorization: Bearer KEY`."


class HostNotAllowed(EaselError):
    code = "auth.foreign_host"
    when = "Easel listens on loopback and the `Host` header is not a loopback name (DNS rebinding)."
    remedy = "Call it by 127.0.0.1 or localhost, or add the name to `allowed_hosts`."


class OriginNotAllowed(EaselError):
    code = "auth.foreign_origin"
    when = "A web page of another origin sent a request that changes something."
    remedy = "Add its origin to `allowed_origins`."


class QueueFull(EaselError):
    code = "queue.full"
    when = "As many requests wait for pictures as `max_waiting` allows."
    remedy = "Try again after `Retry-After` seconds."
    retry = True


class RequestCancelled(EaselError):
    """The client hung up, or the server is stopping; the job was taken back from the engine."""

    code = "request.cancelled"
    when = "The client hung up before its picture was done; nobody reads this answer."
    remedy = "Nothing to do."


class ServerStopping(EaselError):
    code = "server.stopping"
    when = "The server was told to stop while this job ran; the job was taken back from the engine."
    remedy = "Send the request again once the server is back."
    retry = True


class ServerUnreachable(EaselError):
    code = "server.away"
    when = "A command that speaks to the running server found none, or waited too long for it."
    remedy = "Start it with `make run`, or give the command `--url`."
    retry = True


# --- catalogue, templates, settings ---------------------------------------------------------------


class CatalogueInvalid(EaselError):
    code = "catalogue.invalid"
    when = "`catalogue.yaml` breaks its schema, names a workflow that is not there, or claims an alias twice."
    remedy = "The message gives file, line and path of each fault, and what is allowed."


class TemplateInvalid(EaselError):
    code = "workflow.template_invalid"
    when = (
        "A workflow template does not render to JSON objects, names an unknown variable or a node id twice."
    )
    remedy = "The message names the template and the place."


class GraphInvalid(EaselError):
    """`details["faults"]`: a list of {template, node, input, given, allowed, message}."""

    code = "workflow.graph_invalid"
    when = "The graph that a template made is not one that ComfyUI runs as meant."
    remedy = "Each fault names template, node id, input, what was given and what is allowed."


class SettingsInvalid(EaselError):
    code = "settings.invalid"
    when = "`easel.yaml` or an `EASEL_*` variable has an unknown name or a wrong value."
    remedy = "The message names the setting and what is allowed; `docs/settings.md` lists all."


# --- the engine -----------------------------------------------------------------------------------


class EngineError(EaselError):
    """Something about the engine; never raised itself."""


class EngineUnreachable(EngineError):
    code = "engine.unreachable"
    when = "ComfyUI does not answer (a start takes 10 to 20 s), or went away while the job ran."
    remedy = "Start ComfyUI, or correct `engine.url`."
    retry = True


class NodesMissing(EngineError):
    code = "engine.nodes_missing"
    when = "This ComfyUI has not got a node, or an option of a node, that the model's graph needs."
    remedy = "Update ComfyUI or install the custom node that the message names."


class FilesMissing(EngineError):
    """`details["files"]`: a list of {name, folder, url, node, input}."""

    code = "model.files_missing"
    when = "ComfyUI does not see a file of weights that the model needs."
    remedy = "Download the named files into the named folders; no restart is needed."


class EngineRejected(EngineError):
    """`details["faults"]`: a list of {node, class_type, input, type, message}."""

    code = "engine.rejected"
    when = "ComfyUI refused the graph, or a part of it that we need."
    remedy = "Run `flask compile-workflow MODEL PROMPT --check URL` and mend the template."


class NodeFailed(EngineError):
    """`details`: node, class_type, exception_type, exception_message; no traceback, no paths of the host."""

    code = "engine.node_failed"
    when = "A node raised an exception while the graph ran."
    remedy = "The message names node, class and cause."


class EngineOutOfMemory(NodeFailed):
    code = "engine.out_of_memory"
    when = "The GPU (or the machine) ran out of memory while the graph ran."
    remedy = "Ask for a smaller size or n, or a model that needs less."


class JobInterrupted(EngineError):
    code = "engine.interrupted"
    when = "Somebody else stopped the job in ComfyUI while it ran."
    remedy = "Send the request again."
    retry = True


class JobLost(EngineError):
    code = "engine.job_lost"
    when = "The job left ComfyUI's queue without a trace: deleted there, or ComfyUI was restarted."
    remedy = "Send the request again."
    retry = True


class EngineStalled(EngineError):
    code = "engine.stalled"
    when = "ComfyUI answers HTTP, but its worker takes no job any more."
    remedy = "Restart ComfyUI."


class JobTimedOut(EngineError):
    code = "engine.timeout"
    when = "The picture was not done within `request_timeout_s`; the job was cancelled."
    remedy = "Ask for fewer steps, a smaller size or n, or raise the setting."


class NoPictures(EngineError):
    code = "engine.no_pictures"
    when = "The job succeeded, but made no picture, or ComfyUI no longer has the file."
    remedy = "Look at ComfyUI's log; its temp and output folders must not be cleaned while it runs."


class UploadRefused(EngineError):
    code = "engine.upload_refused"
    when = "ComfyUI did not take an image that we uploaded."
    remedy = "Look at ComfyUI's log and the free disk space of its input folder."


# --- who has the GPU ------------------------------------------------------------------------------


class GpuBusy(EaselError):
    code = "gpu.busy"
    when = "The GPU could not be had in time: others were first, or a switchover took too long."
    remedy = "Try again after `Retry-After` seconds; `GET /api/comfyui/status` shows who has it."
    retry = True


class GpuImageMode(EaselError):
    """`details["retry_after_s"]` is None when nobody can say how long: image mode is pinned."""

    code = "gpu.image_mode"
    when = "An LLM request came while ComfyUI has the GPU, and `gpu.llm_during_generation` or a pin holds it there."
    remedy = "Try again after `Retry-After` seconds, or give the GPU back: `flask gpu switch inference`."
    retry = True


class SwitchFailed(EaselError):
    """`details`: target, phase, and the cause's code."""

    code = "gpu.switch_failed"
    when = (
        "The GPU was to change hands for this request and could not; what had been unloaded was loaded again."
    )
    remedy = "The message says which phase failed and why; `GET /api/comfyui/status` shows the same."
    retry = True


class GpuPreempted(EaselError):
    code = "gpu.preempted"
    when = "The owner took the GPU back with `force`; the render and everything queued were dropped."
    remedy = "Send the request again later."


class GpuPinned(EaselError):
    code = "gpu.pinned"
    when = "A switchover to inference while image mode is pinned."
    remedy = "Unpin first, or send `force: true`."


class NotGenerating(EaselError):
    code = "gpu.not_generating"
    when = "`pinned: true` while the LLM stack has the GPU: there is no image mode to hold."
    remedy = "Switch to generation first; the switchover takes `pin: true`."


class InvalidMode(EaselError):
    code = "comfyui.invalid_mode"
    when = "`mode` is neither `generation` nor `inference`."
    remedy = "Send one of the two."


class InvalidPin(EaselError):
    code = "comfyui.invalid_pin"
    when = "`pin` or `pinned` is no boolean, or `pin: true` came with `mode: inference`."
    remedy = "Send true or false; only generation can be pinned."


class InvalidForce(EaselError):
    code = "comfyui.invalid_force"
    when = "`force` is no boolean."
    remedy = "Send true or false."


class InvalidCancel(EaselError):
    code = "comfyui.invalid_cancel"
    when = "A cancel names neither one job by `id` nor `all: true`, or both."
    remedy = 'Send `{"id": "…"}` or `{"all": true}`.'


class JobNotFound(EaselError):
    code = "comfyui.job_not_found"
    when = "No job with this id waits or runs."
    remedy = "`GET /api/comfyui/status` lists the ids."


class RenderCancelled(EaselError):
    code = "comfyui.cancelled"
    when = "The owner cancelled this render."
    remedy = "Send the request again if it was not meant."


class SwitchInProgress(EaselError):
    code = "comfyui.switch_in_progress"
    when = "A switchover is already under way."
    remedy = "Wait for it: `GET /api/comfyui/status` shows its phases."
    retry = True


class ComfyuiBusy(EaselError):
    """`details["queue"]`: {running, pending}."""

    code = "comfyui.busy"
    when = "A switchover to inference while ComfyUI renders or has jobs queued."
    remedy = "Wait until the queue is empty, or send `force: true`, which drops them."
    retry = True


class ArbiterUnavailable(EaselError):
    code = "comfyui.arbiter_unavailable"
    when = "No LLM stack is configured, so there is nobody to share the GPU with and nothing to switch."
    remedy = "Name your LLM servers under `llm.stacks`."


class EngineStartFailed(EngineError):
    code = "engine.start_failed"
    when = "ComfyUI was down, was started as `engine.start` says, and did not answer within `engine.start_timeout_s`."
    remedy = "Start it by hand and read its log; then correct `engine.start`."
    retry = True


class StackError(EaselError):
    """Something about an LLM stack; never raised itself."""


class StackUnreachable(StackError):
    code = "llm.unreachable"
    when = "An LLM server does not answer, so nobody knows what it holds in memory."
    remedy = "Start it, correct its `url` under `llm.stacks`, or take it out."
    retry = True


class StackRefused(StackError):
    code = "llm.refused"
    when = "An LLM server answered a call to list, unload or load models in a way its driver does not expect."
    remedy = "Compare the server's version and options with `docs/llm_stacks.md`; check its key."


# --- the image store ------------------------------------------------------------------------------


class StoreFull(EaselError):
    code = "image.store_full"
    when = "The disk that keeps the images is full."
    remedy = "Free some space, lower `image_store.max_mb`, or ask for `b64_json`, which keeps nothing."


class StoreUnwritable(EaselError):
    code = "image.store_unwritable"
    when = "The folder that keeps the images cannot be written."
    remedy = "Check owner and mode of the state directory."
