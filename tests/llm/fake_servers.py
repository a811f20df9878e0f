"""One small working server for each kind of LLM server: it keeps track of loaded models and answers like the real one.

Each has the models `MODELS`, all loaded at first, and attributes that make it misbehave.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

Answer = tuple[int, Any]
SECRET_ARGUMENT = "sk-of-the-command-line"


class FakeServer:
    """Attributes: `key` is required by every call; an unloaded model stays listed for `unload_delay_s`; with
    `ignores_unloads`, unload calls succeed without effect; paths that start with one of `hanging_paths` get no response;
    with `garbage_status`, every response is text instead of JSON, with this status."""

    DRIVER = ""
    MODELS: tuple[str, ...] = ("chat", "embed")
    KEY_HEADER = "Authorization"
    KEY_PREFIX = "Bearer "
    OPEN_PATHS: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.key = ""
        self.unload_delay_s = 0.0
        self.load_delay_s = 0.0
        self.ignores_unloads = False
        self.hanging_paths: tuple[str, ...] = ()
        self.garbage_status: int | None = None
        self.requests: list[tuple[str, str, Any]] = []
        self.loads = 0
        self.lock = threading.RLock()
        self._loaded: dict[str, float] = dict.fromkeys(self.MODELS, float("inf"))
        self._ready_at: dict[str, float] = {}
        self._stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._stopped.set()
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    # --- memory -----------------------------------------------------------------------------------------------

    def loaded(self) -> list[str]:
        """The models in memory, including those that are loading or unloading."""
        with self.lock:
            now = time.monotonic()
            self._loaded = {
                name: unloaded_at for name, unloaded_at in self._loaded.items() if unloaded_at > now
            }
            return list(self._loaded)

    def is_loading(self, name: str) -> bool:
        return self._ready_at.get(name, 0) > time.monotonic()

    def load(self, name: str) -> None:
        with self.lock:
            self.loads += 1
            self._ready_at[name] = time.monotonic() + self.load_delay_s
            self._loaded[name] = float("inf")

    def unload(self, name: str) -> None:
        with self.lock:
            if not self.ignores_unloads and name in self._loaded:
                self._loaded[name] = min(self._loaded[name], time.monotonic() + self.unload_delay_s)

    # --- HTTP -------------------------------------------------------------------------------------------------

    def handle(self, method: str, target: str, headers: Any, body: Any) -> Answer:
        parts = urlsplit(target)
        self.requests.append((method, target, body))
        if any(parts.path.startswith(path) for path in self.hanging_paths):
            self._stopped.wait(60)
        expected = f"{self.KEY_PREFIX}{self.key}"
        if self.key and parts.path not in self.OPEN_PATHS and headers.get(self.KEY_HEADER) != expected:
            return 401, self.unauthorized(headers.get(self.KEY_HEADER, ""))
        if self.garbage_status is not None:
            return self.garbage_status, "proxy error: Failed to read connection"
        return self.answer(method, parts.path, dict(parse_qsl(parts.query)), body)

    def unauthorized(self, header: str) -> Any:
        return {
            "error": {"message": f"Invalid API Key {header}", "type": "authentication_error", "code": 401}
        }

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        raise NotImplementedError


def _handler_of(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = fake.handle(
                self.command, self.path, self.headers, json.loads(raw) if raw else None
            )
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the client has disconnected

        do_GET = do_POST = do_DELETE = _any

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class FakeOllama(FakeServer):
    DRIVER = "ollama"
    MODELS = ("chat:latest", "embed:latest")
    KNOWN = (*MODELS, "small:latest")

    def __init__(self) -> None:
        super().__init__()
        self.expires: dict[str, str] = {}
        self.on_cpu: set[str] = set()

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if (method, path) == ("GET", "/api/version"):
            return 200, {"version": "0.33.0"}
        if (method, path) == ("GET", "/api/ps"):
            return 200, {"models": [self._entry(name) for name in self.loaded()]}
        if (method, path) not in (("POST", "/api/generate"), ("POST", "/api/embed")):
            return 404, "404 page not found"
        return self._work(path, body["model"], body)

    def _entry(self, name: str) -> Any:
        expires = self.expires.get(name, "2026-11-21T10:05:00.123456789+01:00")
        vram = 0 if name in self.on_cpu else 5137025024
        return {"name": name, "model": name, "size": 5137025024, "expires_at": expires, "size_vram": vram}

    def _work(self, path: str, name: str, body: Any) -> Answer:
        if name not in self.KNOWN:
            return 404, {"error": f"model '{name}' not found"}
        if path == "/api/generate" and body.get("keep_alive") == 0:
            self.unload(name)
            return 200, {"model": name, "response": "", "done": True, "done_reason": "unload"}
        if path == "/api/generate" and name.startswith("embed"):
            return 400, {"error": f'"{name}" does not support generate'}
        self.load(name)
        if body.get("keep_alive") == -1:
            self.expires[name] = "2318-03-04T10:05:00+01:00"
        return 200, {"model": name, "response": "", "done": True, "done_reason": "load"}


class FakeLlamaServer(FakeServer):
    """`busy`: running and deferred requests by model; `sleeping`: models that a request to /slots would wake."""

    DRIVER = "llama-server"
    OPEN_PATHS = ("/health",)
    KNOWN = ("chat", "embed", "broken", "org/model name")

    def __init__(self) -> None:
        super().__init__()
        self.busy: dict[str, tuple[int, int]] = {}
        self.sleeping: set[str] = set()
        self.failed: set[str] = set()
        self.has_metrics = True

    def state(self, name: str) -> str:
        if name not in self.loaded():
            return "unloaded"
        return "loading" if self.is_loading(name) else "sleeping" if name in self.sleeping else "loaded"

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if (method, path) == ("GET", "/health"):
            return 200, {"status": "ok"}
        if (method, path) == ("GET", "/models"):
            return 200, {"data": [self._entry(name) for name in self.KNOWN], "object": "list"}
        if (method, path) == ("GET", "/metrics"):
            return self._metrics(query["model"], query.get("autoload") != "false")
        if (method, path) == ("POST", "/models/load"):
            return self._load(body.get("model"))
        if (method, path) == ("POST", "/models/unload"):
            return self._unload(body.get("model"))
        return 404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}

    def _entry(self, name: str) -> Any:
        status: dict[str, Any] = {
            "value": self.state(name),
            "args": ["llama-server", "--alias", name, "--api-key", SECRET_ARGUMENT],
            "preset": f"[{name}]\napi-key = {SECRET_ARGUMENT}\n",
        }
        if name in self.failed and name not in self.loaded():
            status |= {"failed": True, "exit_code": 1}
        return {"id": name, "aliases": [], "object": "model", "owned_by": "llamacpp", "status": status}

    def _metrics(self, name: str, autoload: bool) -> Answer:
        if name not in self.loaded():
            if autoload:
                self.load(name)
            return 400, _refusal("model is not loaded")
        if not self.has_metrics:
            return 501, _refusal("This server does not support metrics endpoint.")
        running, deferred = self.busy.get(name, (0, 0))
        return 200, (
            "# TYPE llamacpp:requests_processing gauge\n"
            f"llamacpp:requests_processing {running}\nllamacpp:requests_deferred {deferred}\n"
            "llamacpp:requests_processing_total 99\n"
        )

    def _load(self, name: str) -> Answer:
        if name not in self.KNOWN:
            return 404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}
        if name in self.loaded():
            return 400, _refusal("model is already running")
        if name == "broken":
            self.failed.add(name)
        else:
            self.load(name)
        return 200, {"success": True}

    def _unload(self, name: str) -> Answer:
        if name not in self.KNOWN:
            return 400, _refusal("model is not found")
        if name not in self.loaded():
            return 400, _refusal("model is not running")
        self.unload(name)
        return 200, {"success": True}


def _refusal(message: str) -> Any:
    return {"error": {"code": 400, "message": message, "type": "invalid_request_error"}}


class FakeLlamaSwap(FakeServer):
    DRIVER = "llama-swap"
    MODELS = ("chat", "org/embed")
    OPEN_PATHS = ("/health",)

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if (method, path) == ("GET", "/health"):
            return 200, "OK"
        if (method, path) == ("GET", "/running"):
            return 200, {"running": [self._entry(name) for name in self.loaded()]}
        name = unquote(path.removeprefix("/api/models/unload/"))
        if method == "POST" and name in self.MODELS:
            self.unload(name)
            return 200, "OK"
        name = unquote(path.removeprefix("/upstream/").removesuffix("/health"))
        if method == "GET" and name in self.MODELS:
            self.load(name)
            return 404, "no /health here"
        return 404, "model not found"

    def _entry(self, name: str) -> Any:
        state = "starting" if self.is_loading(name) else "ready" if self._loaded[name] > 1e9 else "stopping"
        return {"model": name, "state": state, "cmd": f"llama-server --api-key {SECRET_ARGUMENT}", "ttl": 0}


class FakeVllm(FakeServer):
    """One model. Without `dev_mode` it has no routes to sleep and to wake up."""

    DRIVER = "vllm"
    MODELS = ("model",)

    def __init__(self) -> None:
        super().__init__()
        self.dev_mode = True
        self.running = 0

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if (method, path) == ("GET", "/health"):
            return 200, ""
        if (method, path) == ("GET", "/metrics"):
            return 200, (
                f'vllm:num_requests_running{{engine="0",model_name="m"}} {self.running}.0\n'
                f'vllm:num_requests_running{{engine="1",model_name="m"}} 1.0\n'
                'vllm:num_requests_waiting{engine="0",model_name="m"} 2.0\n'
            )
        if not self.dev_mode:
            return 404, {"detail": "Not Found"}
        if (method, path) == ("GET", "/is_sleeping"):
            return 200, {"is_sleeping": not self.loaded()}
        if (method, path, query) == ("POST", "/sleep", {"level": "1", "mode": "wait"}):
            self.unload("model")
            return 200, {"status": "sleeping", "level": 1}
        if (method, path) == ("POST", "/wake_up"):
            self.load("model")
            return 200, {"status": "awake", "tags": None}
        return 404, {"detail": "Not Found"}


class FakeLmStudio(FakeServer):
    """Answers 200 to unknown paths. An instance that is loaded again gets its model's key as id, not its old id.
    With `ignores_unload_path`, the unload path is unknown too."""

    DRIVER = "lmstudio"
    MODELS = ("qwen/chat", "embed")

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.keys = {name: name for name in self.MODELS}
        self.ignores_unload_path = False

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if (method, path) == ("GET", "/api/v1/models"):
            return 200, {"models": [self._entry(key) for key in self.MODELS]}
        if (method, path) == ("POST", "/api/v1/models/unload") and not self.ignores_unload_path:
            return self._unload(body["instance_id"])
        if (method, path) == ("POST", "/api/v1/models/load"):
            return self._load(body)
        return 200, {"error": f"Unexpected endpoint or method. ({method} {path}). Returning 200 anyway"}

    def _entry(self, key: str) -> Any:
        config = self.config.get(key, {"context_length": 8192, "flash_attention": True})
        instances = [{"id": name, "config": config} for name in self.loaded() if self.keys[name] == key]
        return {"type": "llm", "key": key, "loaded_instances": instances}

    def _unload(self, instance: str) -> Answer:
        if instance not in self.loaded():
            return 404, {"error": {"message": "no such instance"}}
        self.unload(instance)
        return 200, {"instance_id": instance}

    def _load(self, body: Any) -> Answer:
        key = body.get("model")
        if key not in self.MODELS:
            return 404, {"error": {"message": "no such model"}}
        self.keys[key] = key
        self.config[key] = {name: value for name, value in body.items() if name != "model"}
        self.load(key)
        return 200, {"type": "llm", "instance_id": key, "load_time_seconds": 0.1, "status": "loaded"}


class FakeLemonade(FakeServer):
    """`devices`: the device of a model, by default the GPU; `busy`: the models that process a request."""

    DRIVER = "lemonade"

    def __init__(self) -> None:
        super().__init__()
        self.devices: dict[str, str] = {}
        self.busy: set[str] = set()

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if (method, path) == ("GET", "/v1/health"):
            return 200, {"status": "ok", "all_models_loaded": [self._entry(name) for name in self.loaded()]}
        name = (body or {}).get("model_name")
        if (method, path) == ("POST", "/v1/unload"):
            if name is not None and name not in self.loaded():
                return 404, {"error": f"Model not loaded: {name}"}
            for model in [name] if name else self.loaded():
                self.unload(model)
            return 200, {"status": "success", "message": "Model unloaded successfully"}
        if (method, path) == ("POST", "/v1/load") and name in self.MODELS:
            self.load(name)
            return 200, {"status": "success"}
        return 404, {"error": "not found"}

    def _entry(self, name: str) -> Any:
        return {
            "model_name": name,
            "type": "llm",
            "device": self.devices.get(name, "gpu"),
            "is_busy": name in self.busy,
            "recipe_options": {"ctx_size": 4096, "llamacpp_args": f"--api-key {SECRET_ARGUMENT}"},
        }


class FakeTabbyApi(FakeServer):
    """One model. `load_error` is sent as an event in the response to a load; with `truncates_stream`, that response
    lacks its last event."""

    DRIVER = "tabbyapi"
    MODELS = ("chat-exl3",)
    KEY_HEADER = "x-admin-key"
    KEY_PREFIX = ""
    OPEN_PATHS = ("/health",)

    def __init__(self) -> None:
        super().__init__()
        self.load_error: str | None = None
        self.truncates_stream = False

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if (method, path) == ("GET", "/health"):
            return 503, {"status": "unhealthy", "issues": ["long ago"]}
        loaded = self.loaded()
        if (method, path) == ("GET", "/v1/model"):
            return (200, self._card(loaded[0])) if loaded else (503, _NO_MODEL)
        if (method, path) == ("POST", "/v1/model/unload"):
            for name in loaded:
                self.unload(name)
            return (200, None) if loaded else (503, _NO_MODEL)
        if (method, path) == ("POST", "/v1/model/load"):
            return self._load(body["model_name"])
        return 404, {"detail": "Not Found"}

    def _card(self, name: str) -> Any:
        parameters = {
            "max_seq_len": 32768,
            "cache_size": 32768,
            "cache_mode": "FP16",
            "prompt_template": None,
        }
        return {"id": name, "object": "model", "owned_by": "tabbyAPI", "parameters": parameters}

    def _load(self, name: str) -> Answer:
        if name not in self.MODELS:
            return 400, {"detail": {"error": {"message": "Could not find the model path for load."}}}
        first = {"model_type": "model", "module": 1, "modules": 2, "status": "processing"}
        last: Any = {"model_type": "model", "module": 2, "modules": 2, "status": "finished"}
        if self.load_error:
            last = {"error": {"message": self.load_error, "trace": None}}
        else:
            self.load(name)
        events = [first] if self.truncates_stream else [first, last]
        return 200, "".join(f"data: {json.dumps(event)}\r\n\r\n" for event in events)


_NO_MODEL = {"detail": {"error": {"message": "No models are currently loaded.", "trace": None}}}


class FakeLocalAi(FakeServer):
    DRIVER = "localai"
    OPEN_PATHS = ("/readyz", "/healthz")

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if (method, path) == ("GET", "/readyz"):
            return 200, ""
        if (method, path) == ("GET", "/system"):
            models = [{"id": name, "backend": "llama-cpp"} for name in self.loaded()]
            return 200, {"backends": ["llama-cpp"], "loaded_models": models}
        name = (body or {}).get("model")
        if (method, path) == ("POST", "/backend/shutdown"):
            if name not in self.loaded():
                return 404, {"error": {"code": 404, "message": "model not loaded"}}
            self.unload(name)
            return 200, {"message": "model stopped"}
        if (method, path) == ("POST", "/backend/load") and name in self.MODELS:
            self.load(name)
            return 200, {"loaded": [name], "message": "model loaded"}
        return 400, {"error": {"code": 400, "message": "no such model"}}


ALL: tuple[Callable[[], FakeServer], ...] = (
    FakeOllama,
    FakeLlamaServer,
    FakeLlamaSwap,
    FakeVllm,
    FakeLmStudio,
    FakeLemonade,
    FakeTabbyApi,
    FakeLocalAi,
)
