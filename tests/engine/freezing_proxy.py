"""A proxy in front of an engine that freezes at chosen paths, asks for credentials, or passes no WebSockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import ClientSession, WSMsgType, web

_DRIP_INTERVAL_S = 0.05
_END_TIMEOUT_S = 20


class FreezingProxy:
    """Listens on a free port, in its own thread.

    `frozen`: path prefix -> how requests to it freeze: "silent" (no answer), "dripping head", "half body", "dripping
    body", or a number: the status of the answer. `has_socket_output`: without it the engine lacks SaveImageWebsocket,
    so that pictures are fetched by /view. `passes_websockets`: without it /ws is answered 400, as by nginx without the
    upgrade. `passes_events`: without it a WebSocket opens, but the engine's events do not arrive. `is_allowed`: whether
    a request has the right credentials; else it is answered 401 with `challenge`. `version`: the engine says that it is a
    ComfyUI of this version, with a GPU of 10 GB. Records the `paths` of requests and the `headers` of the last.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.frozen: dict[str, str] = {}
        self.passes_websockets = True
        self.has_socket_output = True
        self.passes_events = True
        self.version = ""
        self.is_allowed: Callable[[web.Request], bool] = lambda request: True
        self.challenge = "Basic"
        self.paths: list[str] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.redirects_to = ""
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="freezing-proxy")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FreezingProxy:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=_END_TIMEOUT_S)

    async def _listen(self) -> None:
        self._stopped = asyncio.Event()
        self._client = ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def _end(self) -> None:
        self._stopped.set()
        await self._runner.cleanup()
        await self._client.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        self.requests.append((request.path_qs, dict(request.headers)))
        if self.redirects_to:
            return web.Response(status=302, headers={"Location": self.redirects_to})
        if not self.is_allowed(request):
            return web.Response(
                status=401, headers={"WWW-Authenticate": self.challenge}, text="<html>log in</html>"
            )
        if request.path == "/object_info/SaveImageWebsocket" and not self.has_socket_output:
            return web.json_response({})
        for prefix, manner in self.frozen.items():
            if request.path.startswith(prefix):
                return await self._freeze(request, manner)
        if request.path == "/ws":
            return await self._pass_socket(request) if self.passes_websockets else web.Response(status=400)
        async with self._client.request(
            request.method,
            self.backend + request.path_qs,
            data=await request.read(),
            headers={"Content-Type": request.headers.get("Content-Type", "")},
            allow_redirects=False,
        ) as answer:
            content_type = answer.headers.get("Content-Type", "application/octet-stream")
            body = await answer.read()
            if self.version and request.path == "/system_stats":
                body = self._as_comfyui(body)
            return web.Response(status=answer.status, body=body, headers={"Content-Type": content_type})

    def _as_comfyui(self, body: bytes) -> bytes:
        stats = json.loads(body)
        stats["system"] |= {"comfyui_version": self.version, "easel_sketch": False}
        stats["devices"] = [{"name": "a GPU", "type": "cuda", "vram_total": 10**10, "vram_free": 10**10}]
        return json.dumps(stats).encode()

    async def _freeze(self, request: web.Request, manner: str) -> web.StreamResponse:
        assert request.transport is not None
        if manner.isdigit():
            return web.Response(status=int(manner), text="<html>no</html>")
        if manner == "dripping head":
            await self._drip(request, b"HTTP/1.1 200 OK\r\nX-Filler: ")
        elif manner in ("half body", "dripping body"):
            request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{")
            if manner == "dripping body":
                await self._drip(request, b"")
        await self._stopped.wait()
        return web.Response()

    async def _drip(self, request: web.Request, start: bytes) -> None:
        for byte in (*start, *([ord("x")] * 10_000)):
            if self._stopped.is_set() or request.transport is None or request.transport.is_closing():
                return
            request.transport.write(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), _DRIP_INTERVAL_S)

    async def _pass_socket(self, request: web.Request) -> web.WebSocketResponse:
        front = web.WebSocketResponse()
        await front.prepare(request)
        async with self._client.ws_connect(f"{self.backend}{request.path_qs}", max_msg_size=0) as back:
            sending = asyncio.create_task(self._pass_messages(front, back))
            first = True
            async for message in back:
                if first or self.passes_events:
                    await self._pass_message(message, front)
                first = False
            sending.cancel()
        return front

    async def _pass_messages(self, source: Any, target: Any) -> None:
        async for message in source:
            await self._pass_message(message, target)
        await target.close()

    async def _pass_message(self, message: Any, target: Any) -> None:
        with contextlib.suppress(ConnectionError):
            if message.type == WSMsgType.TEXT:
                await target.send_str(message.data)
            elif message.type == WSMsgType.BINARY:
                await target.send_bytes(message.data)
