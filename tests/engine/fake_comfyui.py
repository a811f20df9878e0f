"""A ComfyUI that does what a test's script says, for what a real one cannot be made to do: die, forget, stall, lie.

A script is a coroutine that gets the server and the id of the job that came, and plays the worker:

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
    """Listens on a free port of its own thread.

    What it saw: `submitted`, `said` on sockets, `headers`, `interrupted`, `asked_history`. Misbehaviour to set:
    `answer` to every submission, `break_next_submission` ("before" or "after" the job is taken),
    `starts_when_deleted`, `queue_troubles` (answers to be a 500), `deaf_to_interrupts` (how many of a job have no effect).
    """

    def __init__(self, script: Script | None = None, *, answer: tuple[int, Any] | None = None) -> None:
        self.script = script
        self.answer = answer
        self.submitted: list[dict[str, Any]] = []
        self.said: list[Any] = []
        self.headers: list[Any] = []
        self.interrupted: list[str] = []
        self.running: list[str] = []
        self.pending: list[str] = []
        self.history: dict[str, Any] = {}
        self.files: dict[str, bytes] = {"picture.png": PICTURE}
        self.free_bytes = [0]
        self.clients: dict[str, str] = {}
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.break_next_submission: str | None = None
        self.starts_when_deleted: str | None = None
        self.deaf_to_interrupts = 0
        self.queue_troubles = 0
        self.asked_history = 0
        self.asked_stats = 0
        self.sketch = False
        self.slow_stats: threading.Event | None = None
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

    def call(self, what: Any) -> Any:
        """Run a coroutine of this server from the test's thread."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(timeout=20)

    def wait_for(self, look: Callable[[], Any]) -> None:
        """Until what the test's thread sees of this server is true."""

        async def seen() -> None:
            while not look():
                await self.breathe()

        self.call(seen())

    # --- what scripts do -----------------------------------------------------------------------------------

    async def send(self, job: str, kind: str, **data: Any) -> None:
        await self.send_raw(job, json.dumps({"type": kind, "data": {"prompt_id": job, **data}}))

    async def send_raw(self, job: str, message: str | bytes) -> None:
        socket = self.sockets.get(self.clients[job])
        if socket is not None and not socket.closed:
            await (socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message))

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
        """The job leaves the queue for history, as a success."""
        outputs = {"save": {"images": [_image(filename)]}} if filename else {}
        self.close_job(job, "success", [["execution_success", {"prompt_id": job}]], outputs)

    def close_job(self, job: str, status: str, messages: list[Any], outputs: dict[str, Any]) -> None:
        self.forget(job)
        self.history[job] = {
            "prompt": [1, job, {}, {}, ["save"]],
            "outputs": outputs,
            "status": {"status_str": status, "completed": status == "success", "messages": messages},
        }

    def forget(self, job: str) -> None:
        for queue in (self.running, self.pending):
            if job in queue:
                queue.remove(job)

    async def breathe(self) -> None:
        """Let the other requests come through."""
        await asyncio.sleep(0.005)

    def later(self, what: Coroutine[Any, Any, None]) -> None:
        """What a request's own handler could not survive to do."""
        task = self._loop.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drop_sockets(self) -> None:
        """As a dying process or a cut cable does: no closing handshake."""
        for socket in self.sockets.values():
            if socket._req is not None and socket._req.transport is not None:
                socket._req.transport.abort()
        self.sockets.clear()

    async def die(self) -> None:
        await self.drop_sockets()
        await self._runner.cleanup()

    async def restart(self) -> None:
        """As a new process: the same port, no memory."""
        await self.die()
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
                web.get("/queue", self._queue),
                web.post("/queue", self._delete),
                web.post("/interrupt", self._interrupt),
                web.post("/free", self._free),
                web.get("/view", self._view),
                web.get("/system_stats", self._stats),
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

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client = request.query["clientId"]
        self.headers.append(request.headers.copy())
        self.sockets[client] = socket
        await socket.send_str(json.dumps({"type": "status", "data": {"sid": client}}))
        async for message in socket:
            self.said.append(json.loads(message.data))
        if self.sockets.get(client) is socket:
            del self.sockets[client]
        return socket

    async def _prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.headers.append(request.headers.copy())
        self.submitted.append(body)
        if self.answer is not None:
            status, answer = self.answer
            if isinstance(answer, str):
                return web.Response(status=status, text=answer)
            return web.json_response(answer, status=status)
        broken, self.break_next_submission = self.break_next_submission, None
        if broken != "before":
            self._accept(body)
        if broken is not None:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"prompt_id": body["prompt_id"], "number": 1, "node_errors": {}})

    def _accept(self, body: dict[str, Any]) -> None:
        job = body["prompt_id"]
        self.clients[job] = body["client_id"]
        self.pending.append(job)
        if self.script is not None:
            self.later(self.script(self, job))

    async def _history(self, request: web.Request) -> web.Response:
        job = request.match_info["id"]
        self.asked_history += 1
        return web.json_response({job: self.history[job]} if job in self.history else {})

    async def _queue(self, _: web.Request) -> web.Response:
        if self.queue_troubles:
            self.queue_troubles -= 1
            return web.Response(status=500)

        def entries(jobs: list[str]) -> list[Any]:
            return [[number, job, {}, {}, ["save"]] for number, job in enumerate(jobs)]

        return web.json_response(
            {"queue_running": entries(self.running), "queue_pending": entries(self.pending)}
        )

    async def _delete(self, request: web.Request) -> web.Response:
        for job in (await request.json())["delete"]:
            if job == self.starts_when_deleted:
                await self.start(job)
            if job in self.pending:
                self.pending.remove(job)
        return web.Response()

    async def _interrupt(self, request: web.Request) -> web.Response:
        job = (await request.json())["prompt_id"]
        self.interrupted.append(job)
        if job in self.running and self.interrupted.count(job) > self.deaf_to_interrupts:
            await self.send(job, "execution_interrupted", node_id="save", node_type="SaveImage", executed=[])
            self.close_job(job, "error", [["execution_interrupted", {"prompt_id": job}]], {})
        return web.Response()

    async def _free(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _view(self, request: web.Request) -> web.Response:
        data = self.files.get(request.query["filename"])
        return web.Response(status=404) if data is None else web.Response(body=data, content_type="image/png")

    async def _stats(self, _: web.Request) -> web.Response:
        self.asked_stats += 1
        while self.slow_stats is not None and not self.slow_stats.is_set():
            await self.breathe()
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
