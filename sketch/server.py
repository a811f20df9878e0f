"""ComfyUI's HTTP routes, each also under `/api`: the same statuses and bodies, without its web interface.

Left out: `/upload/mask`, `/embeddings`, the settings routes, and `channel` and `preview` of `/view`.
A server of its own, on aiohttp like ComfyUI: no library offers ComfyUI's routes without running models.
"""

from __future__ import annotations

import json
import mimetypes
import os
import platform
import sys
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.web_request import FileField

from atomic_file import write_atomic
from loopback import is_loopback
from sketch.folders import KINDS, Folders, resolve_inside, split_annotation
from sketch.jobs import Job, JobQueue
from sketch.signatures import VERSION, Signatures
from sketch.simulated_gpu import SimulatedGpu
from sketch.sockets import FEATURES, MAX_UPLOAD_BYTES, Sockets
from sketch.user_files import UserFiles
from sketch.validation import node_error, validate

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SECRET_FIELDS = ("api_key_comfy_org", "auth_token_comfy_org")
SCRIPT_TYPES = {"text/html", "text/html-sandboxed", "application/xhtml+xml", "text/javascript", "text/css"}
UPLOAD_KINDS: dict[Any, str] = {None: "input", "input": "input", "temp": "temp", "output": "output"}


class Server:
    """The routes, on top of the queue, the signatures, the folders and the sockets. `gpu`: what it says of its device;
    None for the machine itself."""

    def __init__(
        self,
        jobs: JobQueue,
        signatures: Signatures,
        folders: Folders,
        sockets: Sockets,
        gpu: SimulatedGpu | None = None,
    ) -> None:
        self._jobs, self._signatures, self._folders, self._sockets = jobs, signatures, folders, sockets
        self._gpu = gpu
        self._number = 0

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=MAX_UPLOAD_BYTES, middlewares=[_refuse_foreign_origins])
        for prefix in ("", "/api"):
            for path, handler in self._reads().items():
                app.router.add_get(prefix + path, handler)
            for path, handler in self._writes().items():
                app.router.add_post(prefix + path, handler)
            UserFiles(self._folders).add_routes(app, prefix)
        app.router.add_get("/{path:.*}", _not_found)
        return app

    def _reads(self) -> dict[str, Handler]:
        return {
            "/ws": self._sockets.serve,
            "/prompt": self._remaining,
            "/queue": self._queue,
            "/history": self._history,
            "/history/{prompt_id}": self._history_of,
            "/view": self._view,
            "/object_info": self._object_info,
            "/object_info/{name}": self._object_info_of,
            "/system_stats": self._system_stats,
            "/features": _features,
            "/models": self._models,
            "/models/{folder}": self._models_in,
        }

    def _writes(self) -> dict[str, Handler]:
        return {
            "/prompt": self._submit,
            "/queue": self._change_queue,
            "/history": self._change_history,
            "/interrupt": self._interrupt,
            "/free": self._free,
            "/upload/image": self._upload,
        }

    # --- jobs ---

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "prompt" not in body or not isinstance(body, dict):
            return _refused(node_error("no_prompt", "No prompt provided", "No prompt provided", {}), {})
        number = self._number_for(body)
        prompt, targets = body["prompt"], body.get("partial_execution_targets")
        prompt_id, extra_data = str(body.get("prompt_id", uuid.uuid4())), dict(body.get("extra_data", {}))
        if "client_id" in body:
            extra_data["client_id"] = body["client_id"]
        # A list or an object crashes the worker of a real ComfyUI; here it is a 500.
        hash(extra_data.get("client_id"))
        result = validate(
            prompt, targets, self._signatures, lambda name: bool(self._folders.image_path(name))
        )
        if result.error:
            return _refused(result.error, result.node_errors)
        for secret in SECRET_FIELDS:
            extra_data.pop(secret, None)
        self._jobs.put(Job(number, prompt_id, prompt, extra_data, result.outputs))
        return web.json_response(
            {"prompt_id": prompt_id, "number": number, "node_errors": result.node_errors}
        )

    def _number_for(self, body: Any) -> float:
        if "number" in body:
            return float(body["number"])
        number = -self._number if body.get("front") else self._number
        self._number += 1
        return number

    async def _remaining(self, request: web.Request) -> web.Response:
        return web.json_response(self.status())

    def status(self) -> dict[str, Any]:
        """The length of the queue, as in `/prompt` and the status events."""
        return {"exec_info": {"queue_remaining": self._jobs.remaining()}}

    async def _queue(self, request: web.Request) -> web.Response:
        running, pending = self._jobs.running_and_pending()
        queue = {"queue_running": running, "queue_pending": pending}
        return web.json_response({name: [job.as_list() for job in jobs] for name, jobs in queue.items()})

    async def _change_queue(self, request: web.Request) -> web.Response:
        body = await request.json()
        if dict(body).get("clear"):
            self._jobs.clear()
        if "delete" in body:
            self._jobs.delete(body["delete"])
        return web.Response()

    async def _history(self, request: web.Request) -> web.Response:
        max_items = request.query.get("max_items")
        offset = request.query.get("offset")
        return web.json_response(
            self._jobs.history(int(max_items) if max_items else None, int(offset) if offset else -1)
        )

    async def _history_of(self, request: web.Request) -> web.Response:
        return web.json_response(self._jobs.history_of(request.match_info["prompt_id"]))

    async def _change_history(self, request: web.Request) -> web.Response:
        body = await request.json()
        if dict(body).get("clear"):
            self._jobs.clear_history()
        if "delete" in body:
            self._jobs.delete_history(body["delete"])
        return web.Response()

    async def _interrupt(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except json.JSONDecodeError:
            body = {}
        self._jobs.interrupt(body.get("prompt_id") or None)
        return web.Response()

    async def _free(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("free_memory"):
            self._jobs.request_free()
        return web.Response()

    # --- files ---

    async def _view(self, request: web.Request) -> web.StreamResponse:
        if "filename" not in request.query:
            return web.Response(status=404)
        name, kind = split_annotation(request.query["filename"])
        kind = kind or request.query.get("type", "output")
        if not name or name.startswith("/") or ".." in name or kind not in KINDS:
            return web.Response(status=400)
        folder = resolve_inside(self._folders.of(kind), request.query.get("subfolder", ""))
        if folder is None:
            return web.Response(status=403)
        path = resolve_inside(folder, os.path.basename(name))
        if path is None or not path.is_file():
            return web.Response(status=404)
        response = web.FileResponse(path, headers={"Content-Disposition": f'filename="{path.name}"'})
        response.content_type = _mime(path)
        return response

    async def _upload(self, request: web.Request) -> web.Response:
        self._folders.restore()  # the upload is written to a temporary file there
        form = await request.post()
        image = form.get("image")
        if image is None:
            return web.Response(status=400)
        kind = UPLOAD_KINDS[form.get("type")]
        if not isinstance(image, FileField):
            raise TypeError("the image is not a file")  # ComfyUI answers 500
        folder, subfolder = self._folders.of(kind), os.path.normpath(str(form.get("subfolder", "")))
        path = resolve_inside(folder, os.path.join(subfolder, image.filename))
        if path is None or not image.filename:
            return web.Response(status=400)
        data = image.file.read()
        if form.get("overwrite") not in ("true", "1"):
            path = _free_path(path, data)
        write_atomic(path, data)
        self._folders.register(path)
        name = os.path.relpath(path, folder / subfolder)
        return web.json_response({"name": name, "subfolder": str(form.get("subfolder", "")), "type": kind})

    # --- nodes, models, system ---

    async def _object_info(self, request: web.Request) -> web.Response:
        return web.json_response(
            {name: self._signatures.object_info(name) for name in self._signatures.nodes}
        )

    async def _object_info_of(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        known = name in self._signatures.nodes
        return web.json_response({name: self._signatures.object_info(name)} if known else {})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response(list(self._signatures.folders()))

    async def _models_in(self, request: web.Request) -> web.Response:
        names = self._signatures.folders().get(request.match_info["folder"])
        return web.Response(status=404) if names is None else web.json_response(names)

    async def _system_stats(self, request: web.Request) -> web.Response:
        total, free = _memory()
        system = {
            "os": os.name,
            "ram_total": total,
            "ram_free": free,
            "comfyui_version": VERSION,
            "easel_sketch": True,
            "python_version": sys.version,
            "pytorch_version": "none: this is Easel's sketch engine",
            "embedded_python": False,
            "argv": ["sketch"],
        }
        device: dict[str, Any] = {"name": f"sketch ({platform.machine()})", "type": "cpu", "index": None}
        device |= {"vram_total": total, "vram_free": free, "torch_vram_total": total, "torch_vram_free": free}
        return web.json_response({"system": system, "devices": [self._gpu.device() if self._gpu else device]})


def _refused(error: dict[str, Any], node_errors: dict[str, Any]) -> web.Response:
    return web.json_response({"error": error, "node_errors": node_errors}, status=400)


async def _features(request: web.Request) -> web.Response:
    return web.json_response(FEATURES)


async def _not_found(request: web.Request) -> web.Response:
    return web.Response(status=404)


@web.middleware
async def _refuse_foreign_origins(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A web page from another host must not reach an engine on loopback through the user's browser."""
    host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
    if origin is not None and _is_foreign(host, origin):
        return web.Response(status=403)
    if request.method == "OPTIONS":
        return web.Response()
    try:
        return await handler(request)
    except ConnectionResetError:
        return web.Response(status=400)  # a client that was killed while it sent; nobody gets this


def _is_foreign(host: str, origin: str) -> bool:
    host_parts, origin_parts = urlsplit(f"//{host}"), urlsplit(origin)
    if not is_loopback(host_parts.hostname) or not origin_parts.hostname:
        return False
    same_port = None in (host_parts.port, origin_parts.port) or host_parts.port == origin_parts.port
    return host_parts.hostname != origin_parts.hostname or not same_port


def _mime(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return "application/octet-stream" if kind in SCRIPT_TYPES else kind


def _free_path(path: Path, data: bytes) -> Path:
    """`path`, or "name (1).png" and so on: the first that does not exist or already contains these bytes."""
    candidate, count = path, 0
    while candidate.exists() and candidate.read_bytes() != data:
        count += 1
        candidate = path.with_name(f"{path.stem} ({count}){path.suffix}")
    return candidate


def _memory() -> tuple[int, int]:
    """(total, free) bytes of this machine; 0 if the system does not report it."""
    page = os.sysconf("SC_PAGE_SIZE")
    names = ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES")
    total, free = (page * os.sysconf(name) if name in os.sysconf_names else 0 for name in names)
    return total, free
