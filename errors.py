"""Every error that Easel raises by name, with the data it carries. Contains no HTTP: `api/errors.py` maps each class
to a status. The table in `docs/api.md` is generated from `code`, `when` and `remedy`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar


class EaselError(Exception):
    """An error with a stable code.

    `message` is for the person who must fix it. `param` is the request field that caused it, if any.
    `details` is plain JSON and never contains a traceback, a path of this host or a secret.
    """

    code: ClassVar[str] = "server.internal"
    when: ClassVar[str] = "An unexpected internal error."
    remedy: ClassVar[str] = "Find the request id in the server's log and report the error."
    retry: ClassVar[bool] = False
    """Whether the same request may succeed later, so that clients should retry it automatically"""

    def __init__(self, message: str, *, param: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.details = details


MAX_NAMED = 100
"""Names in a message; a large catalogue has more"""


def list_names(names: Sequence[str]) -> str:
    """The names with commas; only the first MAX_NAMED of more, and how many there are besides."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def shorten(text: str, limit: int = 80) -> str:
    """Cut `text` to at most `limit` characters; a cut text ends with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def error_classes(root: type[EaselError] = EaselError) -> Iterator[type[EaselError]]:
    """Every error class that defines its own code, EaselError first, then in the order of this file."""
    if root is EaselError:
        yield root
    for error_class in root.__subclasses__():
        if "code" in vars(error_class):
            yield error_class
        yield from error_classes(error_class)


def error_from_code(code: str, message: str, **details: Any) -> EaselError:
    """The error for a code received from another process; a plain EaselError if the code is unknown."""
    error_class = next((cls for cls in error_classes() if cls.code == code), EaselError)
    return error_class(message, **details)


# --- the request ----------------------------------------------------------------------------------


class InvalidRequest(EaselError):
    """The request cannot be parsed."""

    code = "request.malformed"
    when = "The body is incomplete, is not a valid JSON object or form, or has more than 10,000 JSON values."
    remedy = "Send a complete JSON object or form."


class NotJson(InvalidRequest):
    code = "request.not_json"
    when = "The route accepts JSON only, and the request has another content type."
    remedy = "Send `Content-Type: application/json`."


class WrongContentType(InvalidRequest):
    code = "request.wrong_content_type"
    when = "The route accepts forms and JSON, and the request has another content type."
    remedy = "Send `multipart/form-data` or `application/json`."


class BodyTooLarge(InvalidRequest):
    code = "request.too_large"
    when = (
        "The body is larger than `max_request_mb`, or than 1 MB on a path that takes no image, or a text field of a form "
        "is larger than 30 MB."
    )
    remedy = "Send a smaller body, or raise the setting."


class BodyTimeout(InvalidRequest):
    code = "request.body_timeout"
    when = "The body did not arrive in time: nothing came for 15 seconds, or it took more than three minutes."
    remedy = "Send the body without pauses."


class HeadTimeout(InvalidRequest):
    code = "request.head_timeout"
    when = "The head of the request (its first line and its headers) did not arrive within ten seconds."
    remedy = "Send the head without pauses."


class TooManyConnections(EaselError):
    code = "server.too_many_connections"
    when = "The client's address has more connections open than `max_client_connections` allows."
    remedy = "Close connections, or raise the setting. Add a reverse proxy's address to `trusted_proxies`."
    retry = True


class RangeNotSatisfiable(EaselError):
    code = "request.range_not_satisfiable"
    when = "The `Range` header is outside the image."
    remedy = "The `Content-Range` header of the response gives the image's length in bytes."


class InvalidValue(EaselError):
    """A field has a value that is not allowed; `param` names the field."""

    code = "request.invalid_value"
    when = "A field has the wrong type, is out of range, or is not one of the allowed values."
    remedy = "`param` names the field; the message says what is allowed."


class FieldNotSupported(InvalidValue):
    """`param` names the field."""

    code = "request.field_not_supported"
    when = "A field changes what the picture shows, and this server cannot honour it."
    remedy = "Leave the field out; the message says what to send instead."


class PromptRequired(EaselError):
    code = "image.prompt_required"
    when = "`prompt` is missing, empty or blank."
    remedy = "Send a prompt."


class SizeNotAllowed(InvalidValue):
    code = "image.size_not_allowed"
    when = "`size` is not `WxH` or is outside the model's limits."
    remedy = "If the size is outside the limits, `details` contains them, and the nearest size in `nearest`."


class ModelNotCurated(EaselError):
    code = "image.model_not_curated"
    when = "`model` is not a model id or alias in the catalogue."
    remedy = "Use an id that `GET /v1/models` lists, or add the model to a file in `catalogue_dir`."


class ImageRequired(EaselError):
    code = "image.image_required"
    when = "An edit or variation request has no image."
    remedy = "Send a file in the field `image`, or `images: [{image_url: data:…}]` in JSON."


class ImageNotSupported(InvalidValue):
    """`param` is `image`."""

    code = "image.image_not_supported"
    when = "A request to generations has an image, and its model only draws from a prompt."
    remedy = "Leave the image out, or choose one of the models that the message names and `/v1/images/edits`."


class ImageCountNotAllowed(InvalidValue):
    """`param` is `image`."""

    code = "image.image_count_not_allowed"
    when = "The request has more images than the model's workflow takes, or fewer."
    remedy = "Send as many images as the message says, or choose one of the models that it names."


class InvalidImage(InvalidValue):
    """`param` is `image`, `mask` or `markup`."""

    code = "image.invalid_image"
    when = (
        "An image, mask or markup is empty, damaged, not a picture, too large to decode, or in an unsupported format; "
        "the images are too large together; or the markup has no transparency, or another size than its image."
    )
    remedy = "Send a complete PNG, JPEG, WebP, GIF, BMP or AVIF; the message says what is wrong."


class ImageUrlRefused(InvalidValue):
    code = "image.url_refused"
    when = "An image is given as an http(s) URL, and `images.fetch_urls` is off or the address is not public."
    remedy = "Send the image as a file or as a `data:` URL."


class ImageUrlFailed(InvalidValue):
    code = "image.url_failed"
    when = "The server at the image URL did not return a picture in time and within the size limits."
    remedy = "Send the image as a file or as a `data:` URL."


class ImagesDisabled(EaselError):
    code = "image.disabled"
    when = "`images.enabled` is false."
    remedy = "Set it to `true`."


class ImageNotFound(EaselError):
    code = "image.not_found"
    when = (
        "The store has no image with this name: it never existed, or it was evicted as least recently used."
    )
    remedy = "Request the picture again, or raise `image_store.max_count` and `image_store.max_mb`."


class CursorInvalid(InvalidValue):
    """Raised for `cursor`."""

    code = "image.invalid_cursor"
    when = "`cursor` of `GET /api/images` is not one that this server made."
    remedy = "Send `next` of the page before, unchanged, or leave it out for the first page."


class NoThumbnail(EaselError):
    code = "image.no_thumbnail"
    when = "A stored image cannot be made smaller, because its file is damaged or has too many pixels."
    remedy = "Show the image itself (`url`)."


class IndexUnavailable(EaselError):
    code = "image.index_unavailable"
    when = (
        "The index of the stored images cannot be read or written: it is locked, its disk is full, it was just replaced "
        "because it was damaged, or a newer Easel has written it."
    )
    remedy = (
        "Try again; the message says what is wrong. Drawing, and images by their URL, do not need the index."
    )
    retry = True


class SearchTimedOut(EaselError):
    code = "image.search_timeout"
    when = "A list or a search of the stored images has used the processor for too long (2 seconds)."
    remedy = "Search for fewer or longer words: those of one or two characters are looked for in each prompt."


class ListLimitReached(EaselError):
    code = "image.list_limit"
    when = (
        "The lists and searches of stored images that this caller has asked for have used more of the processor than one "
        "caller may: 5 seconds at once, and a quarter of one processor for long, in each worker."
    )
    remedy = "Wait for `Retry-After` seconds. Follow `GET /api/events` instead of asking for the list again and again."
    retry = True


class FavouritesFull(EaselError):
    """See `FavouritesFull.remedy`."""

    code = "image.favourites_full"
    when = "Favourites are never evicted, and with this one they would exceed the limits of the image store."
    remedy = "Make other images no favourites or delete them, or raise `image_store.max_count` or `image_store.max_mb`."


class RouteNotFound(EaselError):
    code = "route.not_found"
    when = "The path does not exist; often the client's base URL is wrong."
    remedy = "Use `details.base_url` as base URL if it is there; `GET /openapi.json` lists the paths."


class MethodNotAllowed(EaselError):
    code = "route.method_not_allowed"
    when = "The path does not support this HTTP method."
    remedy = "The `Allow` header lists the supported methods."


class InvalidKey(EaselError):
    code = "auth.invalid_key"
    when = "API keys are configured and the request has no valid one."
    remedy = "Send `Authorization: Bearer KEY`."


class KeyEnded(InvalidKey):
    """`details["name"]`: of the key."""

    code = "auth.key_ended"
    when = "The key was revoked, or its time is over. Requests that run or wait are stopped, too."
    remedy = "Ask the owner of the server for a new key (`easel keys add`)."


class KeysUnreadable(EaselError):
    code = "auth.keys_unreadable"
    when = (
        "The file of the named keys is damaged or gone. While the server runs, the keys that it had before still count; "
        "a server that starts like this accepts no named key."
    )
    remedy = (
        "Correct `keys.json` in the state directory, or copy `keys.last_good.json` over it; no restart is needed. To give "
        "up all named keys, remove both files and restart."
    )


class KeyNotFound(EaselError):
    code = "auth.key_not_found"
    when = "There is no named key of this name."
    remedy = "`easel keys list` lists them."


class ScopeMissing(EaselError):
    """`details`: `scope`, the one that is missing, and `scopes`, those of the key."""

    code = "auth.scope_missing"
    when = "The key may not do this: it lacks the scope that `details.scope` names."
    remedy = "Use a key with this scope; the owner makes one with `easel keys add NAME --scopes …`."


class KeyLimit(EaselError):
    """What the limits of a key never allow. `details["limit"]`: what they allow."""

    code = "auth.limit"
    when = "The request has more pictures than the limits of its key ever allow."
    remedy = (
        "Send a smaller request; `param` names the field. `GET /api/keys/me` shows the limits of the key."
    )


class KeyLimitModel(KeyLimit):
    code = "auth.model_not_allowed"
    when = "The key may not use this model."
    remedy = "Choose one of the models that `GET /v1/models` lists with this key."


class KeyLimitSize(KeyLimit):
    code = "auth.size_not_allowed"
    when = "The finished picture would be larger than the key allows."
    remedy = "Request a smaller size; `details.limit` has the largest one. It may be turned by 90 degrees."


class KeyLimitSteps(KeyLimit):
    code = "auth.steps_not_allowed"
    when = "The picture would be drawn with more steps than the key allows."
    remedy = "Send `steps` up to `details.limit`."


class KeyLimitReached(EaselError):
    """`details`: `name` of the limit, `limit`, `used`, and `reset`: seconds until it begins anew, None if unknown."""

    code = "auth.limit_reached"
    when = "The key has used up what it may use in a minute or a day, or as many of its requests run as may at once."
    remedy = "Retry after `Retry-After` seconds, or ask the owner of the server for a higher limit."
    retry = True


class HostNotAllowed(EaselError):
    code = "auth.foreign_host"
    when = "Easel listens on loopback and the `Host` header is not a loopback name (protection against DNS rebinding)."
    remedy = (
        "Use 127.0.0.1 or localhost, or add the name (`details.value`) to `allowed_hosts`. Behind a reverse proxy, set "
        "`public_url` or `trusted_proxies`."
    )


class OriginNotAllowed(EaselError):
    code = "auth.foreign_origin"
    when = "A web page or app of another origin sent a request other than GET, HEAD or OPTIONS."
    remedy = "Add the origin (`details.value`) to `allowed_origins`."


class QueueFull(EaselError):
    code = "queue.full"
    when = (
        "`max_waiting` image requests, or `llm.max_requests` LLM requests, are already waiting or running in the worker "
        "that got the request."
    )
    remedy = "Retry after `Retry-After` seconds."
    retry = True


class TooManyEventStreams(EaselError):
    code = "events.too_many_streams"
    when = (
        "So many clients follow `GET /api/events` or image jobs that others would find no thread in this worker; several "
        "keys leave a quarter of the streams to each other."
    )
    remedy = "Retry after `Retry-After` seconds, or ask for `GET /api/comfyui/status` instead."
    retry = True


class RequestCancelled(EaselError):
    """The client disconnected; the job was cancelled in the engine."""

    code = "request.cancelled"
    when = "The client disconnected before its picture was done. Appears in the log only."
    remedy = "None needed."


class ServerStopping(EaselError):
    code = "server.stopping"
    when = "The server is stopping; if the request's job was running, it was cancelled in the engine."
    remedy = "Send the request again when the server is running."
    retry = True


class ServerUnreachable(EaselError):
    code = "server.away"
    when = "A command could not reach the running server, or timed out waiting for it."
    remedy = "Start the server with `easel run`, or pass `--url`."
    retry = True


class TooManyFiles(EaselError):
    code = "server.too_many_files"
    when = "The server may not open another file or connection: the limit of the process or of the machine is reached."
    remedy = (
        "Raise the limit (`ulimit -n`, systemd's `LimitNOFILE`), or send fewer requests at the same time."
    )
    retry = True


class OutOfMemory(EaselError):
    code = "server.out_of_memory"
    when = "The server had too little memory, or too few threads, for the request."
    remedy = "Send fewer or smaller requests at the same time, or give the server more memory."
    retry = True


class StateUnwritable(EaselError):
    code = "server.state_unwritable"
    when = "The state directory cannot be written: it is read-only, or belongs to another user."
    remedy = "Correct its owner and permissions, or set `state_dir`; no restart is needed."


# --- catalogue, templates, settings ---------------------------------------------------------------


class CatalogueInvalid(EaselError):
    code = "catalogue.invalid"
    when = (
        "`catalogue.yaml` violates its schema, names an unknown workflow, or uses an alias twice. What is wrong in "
        "`catalogue_dir` is only left out."
    )
    remedy = "The message gives the file, line and path of each error, and what is allowed."


class WorkflowUnreadable(EaselError):
    code = "import.unreadable"
    when = "`easel import-workflow` cannot read a file as a workflow of ComfyUI."
    remedy = "The message names the place; export the workflow again in ComfyUI, best with *Workflow > Export (API)*."


class WorkflowNotImportable(EaselError):
    code = "import.not_possible"
    when = "`easel import-workflow` cannot make a model of a workflow."
    remedy = "The message names what is missing, and the option that decides it."


class TemplateInvalid(EaselError):
    code = "workflow.template_invalid"
    when = (
        "A workflow template does not render to JSON objects, uses an unknown variable, or repeats a node id."
    )
    remedy = "The message names the template and the position."


class GraphInvalid(EaselError):
    """`details["errors"]`: a list of {template, node, input, given, allowed, message}."""

    code = "workflow.graph_invalid"
    when = "A template rendered a graph that ComfyUI would reject or run differently than intended."
    remedy = (
        "`details.errors` lists the template, node id, input, given value and allowed values of each error."
    )


class ModelNotDrawable(EaselError):
    """`details`: model, task, faults (a list of texts), tasks (those that the model can draw)."""

    code = "model.not_drawable"
    when = (
        "The check of the catalogue found that the model's graph for this task is not valid, or does not use "
        "everything that a request may set. Other models and tasks are served."
    )
    remedy = "`details.faults` names the nodes and what to write; no restart is needed after the file is corrected."


class LicenceNotAccepted(EaselError):
    """`details`: model, licence ({name, url, commercial}), state (denied or not_accepted)."""

    code = "model.licence_not_accepted"
    when = (
        "The settings deny the licence of the model, LoRA or stage, or nobody accepted it yet and `licences.accept` is "
        "`required` or its files are to be downloaded."
    )
    remedy = (
        "Read the licence, then run `easel accept-licence MODEL`, or change the settings under `licences:`."
    )


class SettingsInvalid(EaselError):
    code = "settings.invalid"
    when = "`easel.yaml` or an `EASEL_*` variable has an unknown name or an invalid value."
    remedy = "The message names the setting and what is allowed; `docs/settings.md` lists all settings."


# --- the engine -----------------------------------------------------------------------------------


class EngineError(EaselError):
    """Base class of the engine errors; never raised itself."""


class EngineUnreachable(EngineError):
    code = "engine.unreachable"
    when = "ComfyUI does not respond (a start takes 10 to 20 s), or stopped responding while the job ran."
    remedy = "Start ComfyUI, or correct `engine.url`."
    retry = True

    @property
    def is_answered(self) -> bool:
        """Whether something answered, but not as ComfyUI should. `details["status"]`: the status of that answer."""
        return "status" in self.details


class EngineAccessDenied(EngineUnreachable):
    """A proxy in front of ComfyUI wants credentials. `details["status"]`: 401 or 403."""

    code = "engine.access_denied"
    when = "ComfyUI, or the proxy in front of it, answers 401 or 403: it wants credentials, or others."
    remedy = (
        "Set `EASEL_ENGINE_USER` and `EASEL_ENGINE_PASSWORD`, `EASEL_ENGINE_TOKEN` or `EASEL_ENGINE_QUERY_TOKEN` in the "
        "environment of Easel."
    )
    retry = False


class EngineWithoutWebSocket(EngineUnreachable):
    code = "engine.no_websocket"
    when = "ComfyUI answers HTTP, but no WebSocket opens at `/ws`: a proxy in front of it does not pass the upgrade."
    remedy = (
        "Let the proxy pass WebSockets; in nginx: `proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
        'proxy_set_header Connection "upgrade";`.'
    )
    retry = False


class NodesMissing(EngineError):
    code = "engine.nodes_missing"
    when = "The engine lacks a node, or an option of a node, that the model's graph needs."
    remedy = (
        "Update ComfyUI or install the custom node that the message names. The sketch engine knows the nodes of ComfyUI "
        "and those that `easel snapshot-nodes` has learned."
    )


class EngineTooOld(EngineError):
    """`details`: model, task, needs (a version), version (that of the engine)."""

    code = "engine.too_old"
    when = "The model needs a newer ComfyUI than the connected one."
    remedy = (
        "Update ComfyUI to the version that the message names, or choose another model; no restart is needed."
    )


class FilesMissing(EngineError):
    """`details["files"]`: a list of {name, folder, url, node, input, ambiguous, nearest}. `ambiguous`: the files that the
    name could mean; `nearest`: files with similar names."""

    code = "model.files_missing"
    when = "The engine does not list a model file (weights) that the model needs."
    remedy = (
        "Download the named files into the named folders, or correct the name; no restart is needed. The sketch engine "
        "lists the files that the catalogue has under `files:`."
    )


class EngineRejected(EngineError):
    """`details["errors"]`: a list of {node, class_type, input, type, message}."""

    code = "engine.rejected"
    when = "ComfyUI rejected the graph, or the part of it that produces the picture."
    remedy = "Run `easel compile-workflow MODEL PROMPT --check URL` and fix the template."


class NodeFailed(EngineError):
    """`details`: node, class_type, exception_type, exception_message; no traceback, no paths of this host."""

    code = "engine.node_failed"
    when = "A node raised an exception while the graph ran."
    remedy = "The message names the node, its class and the cause."


class SketchCannotRun(NodeFailed):
    code = "engine.sketch_cannot_run"
    when = "The built-in sketch engine draws without models, and cannot run a node of the model's graph or its size."
    remedy = "Start a ComfyUI that has the node, or set `engine.url` to one. If it is the size, request fewer pixels."


class EngineOutOfMemory(NodeFailed):
    code = "engine.out_of_memory"
    when = "The GPU (or the machine) ran out of memory while the graph ran."
    remedy = "Request a smaller size or n, or use a model that needs less memory."


class EngineGpuFailed(NodeFailed):
    code = "engine.gpu_failed"
    when = "The GPU itself failed while the graph ran; ComfyUI cannot use it again in the same process."
    remedy = (
        "Restart ComfyUI, and look into its log. If it happens again, the GPU or its driver may be faulty."
    )


class JobInterrupted(EngineError):
    code = "engine.interrupted"
    when = "The job was interrupted in ComfyUI by someone else while it ran."
    remedy = "Send the request again."
    retry = True


class JobLost(EngineError):
    code = "engine.job_lost"
    when = "The job disappeared from ComfyUI's queue and history: it was deleted there, or ComfyUI restarted."
    remedy = "Send the request again."
    retry = True


class EngineStalled(EngineError):
    code = "engine.stalled"
    when = "ComfyUI answers HTTP requests, but its worker no longer processes jobs."
    remedy = "Restart ComfyUI."


class JobTimedOut(EngineError):
    code = "engine.timeout"
    when = "The picture was not done within `request_timeout_s`; Easel cancels the job."
    remedy = "Request fewer steps or a smaller size or n, or raise the setting."


class NoPictures(EngineError):
    code = "engine.no_pictures"
    when = "The job succeeded but produced no picture, or ComfyUI no longer has the file."
    remedy = "Check ComfyUI's log. Do not clean its temp and output folders while it runs."


class UploadRefused(EngineError):
    code = "engine.upload_refused"
    when = "ComfyUI rejected an image upload."
    remedy = "Check ComfyUI's log and the free disk space of its temp folder."


class WorkflowExists(EngineError):
    """`details["file_name"]`: the name that is taken."""

    code = "engine.workflow_exists"
    when = "ComfyUI's editor has a workflow of this name already; it is not replaced."
    remedy = "Send another `file_name`, or none: Easel then finds one that is free."


class WorkflowNotSaved(EngineError):
    """`details["reason"]`: several_users, no_user_files, too_large, not_written or unexpected_answer; `details["status"]`:
    that of the answer."""

    code = "engine.workflow_not_saved"
    when = (
        "ComfyUI did not take a workflow: it runs with `--multi-user`, its disk is full, it cannot write into its user "
        "folder, or it is too old."
    )
    remedy = "The message names the cause. Or download the workflow and drop the file on ComfyUI's page."


# --- LLM requests ----------------------------------------------------------------------------------


class ModelMissing(InvalidRequest):
    code = "request.missing_model"
    when = "An LLM request names no model, and the alias that would stand for it is not in `llm.aliases`."
    remedy = "Send `model`; the message names the alias that the owner can set."


class NoRoute(EaselError):
    """`details["models"]`: some of the models that there are."""

    code = "dispatch.no_route"
    when = "No upstream has the requested model, or the one that has it does not offer this path."
    remedy = (
        "`GET /v1/models` lists the models. Upstreams are configured in `llm.upstreams` and `llm.stacks`."
    )


class UpstreamUnavailable(EaselError):
    """`details["upstream"]`: its name. `details["retry_after_s"]` is None if only the owner can help: it rejects the key, or
    redirects."""

    code = "dispatch.upstream_unavailable"
    when = (
        "The upstream of an LLM request cannot be reached, rejects its key, redirects, does not answer in time, or ends the "
        "connection before it has answered."
    )
    remedy = "Start the server, or correct its entry in `llm.upstreams` or `llm.stacks`; the message says what is wrong."
    retry = True


class UpstreamFailed(UpstreamUnavailable):
    code = "dispatch.upstream_failed"
    when = (
        "The upstream of an LLM request answered with something that is no answer: a page, an error in the place of a "
        "result, or a text of its own with a status of 500 or more."
    )
    remedy = "The message quotes the beginning. Look into the log of that server."


class SlotLoading(EaselError):
    """`details`: slot (the model that was asked for), state, upstream."""

    code = "slot.loading"
    when = "The LLM server is still loading the model."
    remedy = "Retry after `Retry-After` seconds."
    retry = True


class SlotNotReady(SlotLoading):
    code = "slot.not_ready"
    when = "The LLM server does not have the model loaded, and does not load it for a request."
    remedy = "Load the model there, or let the server load models for requests, then retry."


# --- who has the GPU ------------------------------------------------------------------------------


class GpuBusy(EaselError):
    code = "gpu.busy"
    when = (
        "The request did not get the GPU in time: other requests came first, or a switchover took too long."
    )
    remedy = "Retry after `Retry-After` seconds; `GET /api/comfyui/status` shows what uses the GPU."
    retry = True


class GpuInGenerationMode(EaselError):
    """`details["retry_after_s"]` is None if the time is unknown because generation mode is pinned."""

    code = "gpu.image_mode"
    when = (
        "An LLM request arrived in generation mode, and a pin or `gpu.llm_during_generation` keeps it there."
    )
    remedy = "Retry after `Retry-After` seconds, or switch back with `easel gpu switch inference`."
    retry = True


class SwitchFailed(EaselError):
    """`details`: target, phase, and the cause's code."""

    code = "gpu.switch_failed"
    when = "The request needed a switchover and it failed. Models that were unloaded for it are loaded again."
    remedy = "The message says which phase failed and why; `GET /api/comfyui/status` shows the same."
    retry = True


class GpuPreempted(EaselError):
    code = "gpu.preempted"
    when = "A switch cancelled this request: the owner sent `force`, or `gpu.on_drain_timeout` is `kill`."
    remedy = "Send the request again later."


class GpuPinned(EaselError):
    code = "gpu.pinned"
    when = "A switchover to inference was requested while generation mode is pinned."
    remedy = "Unpin first, or send `force: true`."


class NotGenerating(EaselError):
    code = "gpu.not_generating"
    when = "`pinned: true` was sent in inference mode; only generation mode can be pinned."
    remedy = "Switch to generation first, or send the switchover with `pin: true`."


class InvalidMode(EaselError):
    code = "comfyui.invalid_mode"
    when = "`mode` is neither `generation` nor `inference`."
    remedy = "Send one of these two values."


class InvalidPin(EaselError):
    code = "comfyui.invalid_pin"
    when = "`pin` or `pinned` is not a boolean, or `pin: true` was sent with `mode: inference`."
    remedy = "Send true or false; only generation mode can be pinned."


class InvalidForce(EaselError):
    code = "comfyui.invalid_force"
    when = "`force` is not a boolean."
    remedy = "Send true or false."


class InvalidCancel(EaselError):
    code = "comfyui.invalid_cancel"
    when = "A cancel request has neither a job `id` nor `all: true`, or has both."
    remedy = 'Send `{"id": "…"}` or `{"all": true}`.'


class JobNotFound(EaselError):
    code = "comfyui.job_not_found"
    when = "No waiting or running job has this id."
    remedy = "`GET /api/comfyui/status` lists the ids."


class RenderCancelled(EaselError):
    code = "comfyui.cancelled"
    when = "The owner cancelled this job."
    remedy = "Send the request again if this was a mistake."


class SwitchInProgress(EaselError):
    code = "comfyui.switch_in_progress"
    when = "A switchover is already in progress."
    remedy = "Wait until it ends; `GET /api/comfyui/status` shows its phases."
    retry = True


class ComfyuiBusy(EaselError):
    """`details["queue"]`: {running, pending}."""

    code = "comfyui.busy"
    when = "A switchover to inference was requested while ComfyUI has running or queued jobs."
    remedy = "Wait until the queue is empty, or send `force: true` to drop the jobs."
    retry = True


class ArbiterUnavailable(EaselError):
    code = "comfyui.arbiter_unavailable"
    when = "No LLM stack is configured, so the GPU is not shared and there is nothing to switch."
    remedy = "Configure your LLM servers under `llm.stacks`."


class EngineStartFailed(EngineError):
    code = "engine.start_failed"
    when = "ComfyUI was started with `engine.start` and did not respond within `engine.start_timeout_s`."
    remedy = "Start ComfyUI manually and read its log, then correct `engine.start`."
    retry = True


class EngineDrained(EngineError):
    """`details["engines"]`: their names."""

    code = "engine.drained"
    when = "Every engine that may draw the model is drained: it gets no new jobs."
    remedy = "Resume one with `easel engines resume NAME`, or choose another model."
    retry = True


class EngineNotListed(EngineError):
    """`details["model"]`: its id."""

    code = "engine.not_listed"
    when = "Each entry under `engines` lists the models that it draws, and none lists this one."
    remedy = "Add the model to `models` of an entry under `engines`, or choose another model."


# --- hosts ----------------------------------------------------------------------------------------


class ClusterError(EngineError):
    """Of the hosts that draw, or of the Redis that joins them."""


class ClusterUnreachable(ClusterError):
    code = "cluster.unreachable"
    when = "The Redis that joins the hosts does not answer."
    remedy = "Start it, or correct `cluster.redis`; `easel hosts` says what is wrong."
    retry = True


class ClusterAccessDenied(ClusterError):
    code = "cluster.access_denied"
    when = "Redis refuses the user or the password, or what they may do."
    remedy = "Set `EASEL_CLUSTER_USER` and `EASEL_CLUSTER_PASSWORD`; that user needs all keys and channels."


class ClusterFull(ClusterError):
    code = "cluster.full"
    when = "Redis has no memory or no disk left for jobs and pictures."
    remedy = "Give it more (`maxmemory`); `docs/hosts.md` says how much is needed."
    retry = True


class ClusterMessageInvalid(ClusterError):
    code = "cluster.message_invalid"
    when = "A message of another host cannot be used: it was made with another key or by another version, or it is damaged."
    remedy = "Set the same `EASEL_CLUSTER_KEY` on all hosts, and install versions that differ by one at most."


class ClusterPictureLost(ClusterError):
    code = "cluster.picture_lost"
    when = "A picture was drawn and did not come through Redis whole."
    remedy = "Send the request again; give Redis more memory if it happens often."
    retry = True


class NoHosts(ClusterError):
    """`details["model"]`: its id, if there are hosts that draw others."""

    code = "cluster.no_hosts"
    when = "No host is there that can draw the model now."
    remedy = "Start `easel worker` on a host that has the model; `easel hosts` lists the hosts and what they can draw."
    retry = True


class HostGone(ClusterError):
    """`details["host"]`: its name."""

    code = "cluster.host_gone"
    when = "Hosts ended or were cut off while they drew the picture, and no other one could finish it."
    remedy = "Send the request again; look into the logs of the hosts."
    retry = True


class HostNameTaken(ClusterError):
    code = "cluster.name_taken"
    when = "Another worker with the same name is running."
    remedy = "Set `cluster.name` (`EASEL_CLUSTER_NAME`) to a name of its own for each worker."


class StackError(EaselError):
    """Base class of the LLM stack errors; never raised itself."""


class StackUnreachable(StackError):
    code = "llm.unreachable"
    when = "An LLM server does not respond, so the models it has in memory are unknown."
    remedy = "Start it, or correct or remove its entry under `llm.stacks`."
    retry = True


class StackRefused(StackError):
    code = "llm.refused"
    when = "An LLM server answered a list, load or unload call in a way that its driver does not expect."
    remedy = "Compare the server's version and options with `docs/llm_stacks.md`, and check its key."


# --- the files of the models ----------------------------------------------------------------------


class ModelsFolderMissing(EaselError):
    code = "model.no_models_folder"
    when = "Files cannot be pulled: `engine.models_dir` is empty or is no folder."
    remedy = (
        "Set `engine.models_dir` to ComfyUI's folder `models`. If ComfyUI runs on another machine, run the commands that "
        "`easel pull-model ID` prints there."
    )


class ModelPathUnsafe(EaselError):
    code = "model.unsafe_path"
    when = "The name of a file leads out of its folder, by `..` or through a symlink."
    remedy = "Correct the name in the catalogue, or remove the symlink."


class ModelDiskFull(EaselError):
    """`details`: `needed` and `free` in bytes."""

    code = "model.disk_full"
    when = (
        "The disk of the models folder has too little space for the files that are missing, or became full."
    )
    remedy = "Free disk space, such as with `easel pull-model --remove ID`, and pull again: what has arrived is kept."


class DownloadFailed(EaselError):
    code = "model.download_failed"
    when = (
        "A file could not be pulled: its server cannot be reached, refuses it, or breaks off again and again."
    )
    remedy = "Read the message and pull again later: what has arrived is kept."


class DownloadForbidden(DownloadFailed):
    code = "model.token_needed"
    when = "The server of a file gives it only to accounts that accepted its terms."
    remedy = (
        "Accept the terms on the page that the message names, and set `HF_TOKEN` to a token of that account in the "
        "environment of Easel."
    )


class WrongFile(DownloadFailed):
    code = "model.wrong_file"
    when = "What the server sent is not the file that the catalogue describes: size or SHA-256 differ."
    remedy = "It was kept as `NAME.wrong` and is not used. Correct `url`, `size` or `sha256`, or report it to the publisher."


class ModelFileBusy(EaselError):
    code = "model.file_busy"
    when = "A file cannot be removed while it is being pulled."
    remedy = "Cancel the pull first."


class PullNotFound(EaselError):
    code = "model.pull_not_found"
    when = "No pull has this id."
    remedy = "`GET /api/models/pulls` lists them."


# --- the image store ------------------------------------------------------------------------------


class StoreFull(EaselError):
    code = "image.store_full"
    when = "The disk of the image store, of the state directory or of temporary files is full."
    remedy = (
        "Free disk space, lower `image_store.max_mb`, or request `b64_json`, which is answered all the same."
    )


class StoreUnwritable(EaselError):
    code = "image.store_unwritable"
    when = "The folder of the image store is not writable."
    remedy = "Check the owner and permissions of the state directory."


# --- requests that outlive their connection --------------------------------------------------------


class IdempotencyKeyInvalid(InvalidValue):
    code = "idempotency.key_invalid"
    when = "The `Idempotency-Key` is empty, longer than 255 characters, or has other characters than printable ASCII."
    remedy = "Send a random key, such as a UUID."


class IdempotencyKeyReused(EaselError):
    code = "idempotency.key_reused"
    when = "The `Idempotency-Key` was sent with another body, or to another path, within the last day."
    remedy = "Send a new key with each new request, and the same body with each retry."


class ImageJobNotFound(EaselError):
    code = "jobs.not_found"
    when = "There is no such job of this caller; jobs are kept for a day after they have ended."
    remedy = "`GET /v1/images/jobs` lists the jobs."


class ImageJobsFull(EaselError):
    code = "jobs.full"
    when = "`jobs.max_count` jobs wait already, or what they were sent has more than `jobs.max_mb`."
    remedy = "Retry after `Retry-After` seconds, cancel jobs, or raise the setting."
    retry = True


class ImageJobDamaged(EaselError):
    code = "jobs.damaged"
    when = "What was kept of a job was damaged or deleted before the job was drawn."
    remedy = "Send the request again. The log names the file that was moved aside."


class ImageJobInterrupted(EaselError):
    code = "jobs.interrupted"
    when = "The server ended several times while it drew this job."
    remedy = "Look for the reason in the server's log; the job may need more memory than there is."


class JobPicturesRemoved(EaselError):
    code = "jobs.pictures_removed"
    when = "The pictures of a job were removed from the image store."
    remedy = "Fetch the result sooner, or raise `image_store.max_count` or `image_store.max_mb`."
