"""A fake ComfyUI that follows a test's script, for what a real one cannot be made to do: crash, lose a job, stall,
send wrong data.

A script is a coroutine that gets the server and the id of a submitted job, and acts as the worker:

    async def script(comfy, job):
        await comfy.start(job)
        await comfy.succeed(job)
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import WSCloseCode, web

PICTURE = b"\x89PNG\r\n\x1a\n" + b"picture"
Script = Callable[["FakeComfyUI", str], Coroutine[Any, Any, None]]


class FakeComfyUI:
    """Listens on a free port, in its own thread.

    It records `submitted` bodies, `socket_messages`, `headers`, `interrupted` jobs, `history_requests` and
    `stats_requests`. Faulty behaviour that a test can set: `submit_response` to every submission,
    `break_next_submission` ("before" or "after" the job is accepted), `starts_when_deleted` (a job), `queue_errors`
    (how many requests get a 500), `ignored_interrupts` (how many interrupts of a job have no effect), `slow_stats`
    (stats wait for this event), `slow_queue` (the queue waits for it), `late_submission` (submissions are accepted once it is set), `ignored_deletes` (how many
    deletes have no effect). `has_cancel_route`: whether it has the route of newer ComfyUIs that cancels one job; it
    records the jobs in `cancelled`, and answers `cancel_status` without that route. `opens_sockets`: without it new
    WebSockets are answered 502. `forgotten`: the jobs whose history was deleted.
    """

    def __init__(
        self, script: Script | None = None, *, submit_response: tuple[int, Any] | None = None
    ) -> None:
        self.script = script
        self.submit_response = submit_response
        self.submitted: list[dict[str, Any]] = []
        self.socket_messages: list[Any] = []
        self.headers: list[Any] = []
        self.interrupted: list[str] = []
        self.deleted: list[str] = []
        self.cancelled: list[str] = []
        self.has_cancel_route = False
        self.cancel_requests = 0
        self.cancel_status = 405
        self.ignored_deletes = 0
        self.opens_sockets = True
        self.forgotten: list[str] = []
        self.late_submission: threading.Event | None = None
        self.queue_requests = 0
        self.running: list[str] = []
        self.pending: list[str] = []
        self.history: dict[str, Any] = {}
        self.files: dict[str, bytes] = {"picture.png": PICTURE}
        self.object_info: dict[str, Any] = {}
        self.free_bytes = [0]
        self.clients: dict[str, str] = {}
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.break_next_submission: str | None = None
        self.starts_when_deleted: str | None = None
        self.ignored_interrupts = 0
        self.queue_errors = 0
        self.history_requests = 0
        self.stats_requests = 0
        self.sketch = False
        self.slow_stats: threading.Event | None = None
        self.slow_queue: threading.Event | None = None
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-comfyui")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FakeComfyUI:
        self._thread.start()
        self.call(self.listen())
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, coroutine: Any) -> Any:
        """Run a coroutine of this server from the test's thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=20)

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition is true; for the test's thread."""

        async def poll() -> None:
            while not condition():
                await self.pause()

        self.call(poll())

    # --- for scripts ---------------------------------------------------------------------------------------

    async def send(self, job: str, kind: str, **data: Any) -> None:
        await self.send_raw(job, json.dumps({"type": kind, "data": {"prompt_id": job, **data}}))

    async def send_raw(self, job: str, message: str | bytes) -> None:
        socket = self.sockets.get(self.clients[job])
        if socket is not None and not socket.closed:
            await (socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message))

    def transport_of(self, job: str) -> asyncio.Transport:
        """What the messages of a job are written to."""
        request = self.sockets[self.clients[job]]._req
        assert request is not None
        assert request.transport is not None
        return request.transport  # type: ignore[return-value]

    async def start(self, job: str) -> None:
        self.pending.remove(job)
        self.running.append(job)
        await self.send(job, "execution_start")
        await self.send(job, "execution_cached", nodes=[])
        await self.send(job, "executing", node="save")

    async def executed(self, job: str, filename: str = "picture.png", node: str = "save") -> None:
        await self.send(job, "executed", node=node, output={"images": [_image(filename)]})

    async def succeed(self, job: str, filename: str = "picture.png") -> None:
        await self.executed(job, filename)
        await self.send(job, "execution_success")
        self.finish(job, filename)
        await self.send(job, "executing", node=None)

    def finish(self, job: str, filename: str | None = "picture.png") -> None:
        """Move the job from the queue to history, as a success."""
        outputs = {"save": {"images": [_image(filename)]}} if filename else {}
        self.close_job(job, "success", [["execution_success", {"prompt_id": job}]], outputs)

    def close_job(self, job: str, status: str, messages: list[Any], outputs: dict[str, Any]) -> None:
        self.remove(job)
        self.history[job] = {
            "prompt": [1, job, {}, {}, ["save"]],
            "outputs": outputs,
            "status": {"status_str": status, "completed": status == "success", "messages": messages},
        }

    def remove(self, job: str) -> None:
        for queue in (self.running, self.pending):
            if job in queue:
                queue.remove(job)

    async def pause(self) -> None:
        """Let other requests run."""
        await asyncio.sleep(0.005)

    def run_later(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run it outside of the current request's handler, which it may kill."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drop_sockets(self) -> None:
        """Abort the connections without a closing handshake, as a killed process or a cut cable does."""
        for socket in self.sockets.values():
            if socket._req is not None and socket._req.transport is not None:
                socket._req.transport.abort()
        self.sockets.clear()

    async def crash(self) -> None:
        await self.drop_sockets()
        await self._runner.cleanup()

    async def restart(self) -> None:
        """As a new process: the same port, an empty queue and history."""
        await self.crash()
        self.running, self.pending, self.history = [], [], {}
        await self.listen()

    # --- the server ------------------------------------------------------------------------------------------

    async def listen(self) -> None:
        app = web.Application()
        app.add_routes(
            [
                web.get("/ws", self._ws),
                web.post("/prompt", self._prompt),
                web.get("/history/{id}", self._history),
                web.post("/history", self._forget),
                web.get("/queue", self._queue),
                web.post("/queue", self._delete),
                web.post("/interrupt", self._interrupt),
                web.post("/api/jobs/{id}/cancel", self._cancel),
                web.post("/free", self._free),
                web.get("/view", self._view),
                web.get("/system_stats", self._stats),
                web.get("/object_info/{name}", self._object_info),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for socket in list(self.sockets.values()):
            await socket.close(code=WSCloseCode.GOING_AWAY)
        await self._runner.cleanup()

    async def _ws(self, request: web.Request) -> web.StreamResponse:
        if not self.opens_sockets:
            return web.Response(status=502)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client = request.query["clientId"]
        self.headers.append(request.headers.copy())
        self.sockets[client] = socket
        await socket.send_str(json.dumps({"type": "status", "data": {"sid": client}}))
        async for message in socket:
            self.socket_messages.append(json.loads(message.data))
        if self.sockets.get(client) is socket:
            del self.sockets[client]
        return socket

    async def _prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.headers.append(request.headers.copy())
        self.submitted.append(body)
        while self.late_submission is not None and not self.late_submission.is_set():
            await self.pause()
        if self.submit_response is not None:
            status, content = self.submit_response
            if isinstance(content, str):
                return web.Response(status=status, text=content)
            return web.json_response(content, status=status)
        break_at, self.break_next_submission = self.break_next_submission, None
        if break_at != "before":
            self._accept(body)
        if break_at is not None:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"prompt_id": body["prompt_id"], "number": 1, "node_errors": {}})

    def _accept(self, body: dict[str, Any]) -> None:
        job = body["prompt_id"]
        self.clients[job] = body["client_id"]
        self.pending.append(job)
        if self.script is not None:
            self.run_later(self.script(self, job))

    async def _history(self, request: web.Request) -> web.Response:
        job = request.match_info["id"]
        self.history_requests += 1
        return web.json_response({job: self.history[job]} if job in self.history else {})

    async def _forget(self, request: web.Request) -> web.Response:
        for job in (await request.json())["delete"]:
            self.forgotten.append(job)
            self.history.pop(job, None)
        return web.Response()

    async def _queue(self, _: web.Request) -> web.Response:
        self.queue_requests += 1
        while self.slow_queue is not None and not self.slow_queue.is_set():
            await self.pause()
        if self.queue_errors:
            self.queue_errors -= 1
            return web.Response(status=500)

        def entries(jobs: list[str]) -> list[Any]:
            return [[number, job, {}, {}, ["save"]] for number, job in enumerate(jobs)]

        return web.json_response(
            {"queue_running": entries(self.running), "queue_pending": entries(self.pending)}
        )

    async def _delete(self, request: web.Request) -> web.Response:
        for job in (await request.json())["delete"]:
            self.deleted.append(job)
            if job == self.starts_when_deleted:
                await self.start(job)
            if job in self.pending and self.deleted.count(job) > self.ignored_deletes:
                self.pending.remove(job)
        return web.Response()

    async def _cancel(self, request: web.Request) -> web.Response:
        self.cancel_requests += 1
        if not self.has_cancel_route:
            return web.Response(status=self.cancel_status)
        job = request.match_info["id"]
        self.cancelled.append(job)
        is_queued = job in (*self.running, *self.pending)
        if job in self.pending:
            self.pending.remove(job)
        elif self.cancelled.count(job) > self.ignored_interrupts:
            await self._stop(job)
        return web.json_response({"cancelled": is_queued})

    async def _interrupt(self, request: web.Request) -> web.Response:
        job = (await request.json())["prompt_id"]
        self.interrupted.append(job)
        if self.interrupted.count(job) > self.ignored_interrupts:
            await self._stop(job)
        return web.Response()

    async def _stop(self, job: str) -> None:
        if job in self.running:
            await self.send(job, "execution_interrupted", node_id="save", node_type="SaveImage", executed=[])
            self.close_job(job, "error", [["execution_interrupted", {"prompt_id": job}]], {})

    async def _free(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _view(self, request: web.Request) -> web.Response:
        data = self.files.get(request.query["filename"])
        return web.Response(status=404) if data is None else web.Response(body=data, content_type="image/png")

    async def _object_info(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response({name: self.object_info[name]} if name in self.object_info else {})

    async def _stats(self, _: web.Request) -> web.Response:
        self.stats_requests += 1
        while self.slow_stats is not None and not self.slow_stats.is_set():
            await self.pause()
        free = self.free_bytes.pop(0) if len(self.free_bytes) > 1 else self.free_bytes[0]
        return web.json_response(
            {
                "system": {
                    "comfyui_version": "0.0.0",
                    "ram_total": 2**40,
                    "ram_free": 2**30,
                    "easel_sketch": self.sketch,
                },
                "devices": [{"name": "fake", "type": "cpu", "vram_total": 2**40, "vram_free": free}],
            }
        )


def _image(filename: str | None) -> dict[str, Any]:
    return {"filename": filename, "subfolder": "", "type": "output"}
