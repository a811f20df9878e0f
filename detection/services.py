"""Tells from a server's answers what it is. Pure: the answers are values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["comfyui", "easel", "ollama", "llama-server", "llama-swap", "lmstudio", "vllm", "unknown"]
TITLES: Mapping[Kind, str] = {
    "comfyui": "ComfyUI",
    "easel": "Easel",
    "ollama": "Ollama",
    "llama-server": "llama-server",
    "llama-swap": "llama-swap",
    "lmstudio": "LM Studio",
    "vllm": "vLLM",
}
_OWNERS: Mapping[str, Kind] = {
    "llamacpp": "llama-server",
    "llama-swap": "llama-swap",
    "vllm": "vllm",
    "organization_owner": "lmstudio",
}
"""`owned_by` in GET /v1/models"""
_MAX_NAMED_CHARS = 40
_MAX_GPU_BYTES = 10**15
"""What says that it has more is not believed; it might not even be a number that can be divided"""


@dataclass(frozen=True)
class Answer:
    """The answer to a GET request. `server`: that header; `document`: the JSON, None if it is not JSON; `text`: the body's
    beginning."""

    status: int
    server: str = ""
    document: Any = None
    text: str = ""

    def value(self, *path: str) -> Any:
        """The value at `path` in the JSON of an answer of status 200; None if there is none."""
        value = self.document if self.status == 200 else None
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value


Ask = Callable[[str], Answer | None]
"""path -> the answer; None if there is none in time"""


@dataclass(frozen=True)
class Comfyui:
    """What a ComfyUI says about itself. `gpu`: the name of its device, None if it draws with the processor; `gpu_bytes`: the
    device's memory; `folders`: folder -> where it looks, in its own file system; empty if its version does not say."""

    gpu: str | None = None
    gpu_bytes: int | None = None
    arguments: tuple[str, ...] = ()
    folders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Service:
    """A server that answers at `url`. `can_unload`: whether Easel can have its models unloaded for a picture;
    `why_not`: what it would need for that. `name`: how an unknown server calls itself."""

    url: str
    kind: Kind
    version: str = ""
    name: str = ""
    needs_key: bool = False
    can_unload: bool = False
    why_not: str = ""
    comfyui: Comfyui | None = None

    @property
    def is_llm(self) -> bool:
        return self.kind not in ("comfyui", "easel", "unknown")

    @property
    def title(self) -> str:
        """Such as `Ollama 0.12.3`, or `another server (nginx)`."""
        if self.kind == "unknown":
            what = "a server that wants a login" if self.needs_key else "another server"
            return f"{what} ({self.name})" if self.name else what
        if self.name:
            return self.name
        return f"{TITLES[self.kind]} {self.version}".strip()


def identify(url: str, ask: Ask) -> Service | None:
    """What answers at `url`; None if nothing does. A server that is not recognized is `unknown`, never an LLM server."""
    first = ask("/system_stats")
    if first is None:
        return None
    if isinstance(version := first.value("system", "comfyui_version"), str):
        return _comfyui(url, _clean(version), first, ask)
    for recognize in (_easel, _ollama, _by_models):
        if found := recognize(url, ask):
            return found
    return Service(url, "unknown", name=_clean(first.server), needs_key=first.status in (401, 403))


def _comfyui(url: str, version: str, stats: Answer, ask: Ask) -> Service:
    if stats.value("system", "easel_sketch") is True:
        return Service(url, "easel", version, name="Easel's sketch engine")
    devices = stats.value("devices")
    device = devices[0] if isinstance(devices, list) and devices and isinstance(devices[0], Mapping) else {}
    has_gpu = device.get("type") not in (None, "cpu")
    total, name = device.get("vram_total"), device.get("name")
    # For ComfyUI's own page, and so not promised by it; without it, its command line and the usual places are looked at.
    folders = ask("/internal/folder_paths")
    facts = Comfyui(
        gpu=_gpu_name(str(name)) if has_gpu and name else None,
        gpu_bytes=total if has_gpu and isinstance(total, int) and 0 <= total <= _MAX_GPU_BYTES else None,
        arguments=_texts(stats.value("system", "argv")),
        folders={
            str(folder): _texts(places)
            for folder, places in ((folders.value() if folders else None) or {}).items()
        }
        if folders and isinstance(folders.value(), Mapping)
        else {},
    )
    return Service(url, "comfyui", version, comfyui=facts)


def _gpu_name(text: str) -> str:
    """`cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync` without what is not its name."""
    return _clean(re.sub(r"^[a-z]+:\d+ ", "", text).partition(" : ")[0])


def _easel(url: str, ask: Ask) -> Service | None:
    document = ask("/openapi.json")
    if document is None or document.value("info", "title") != "Easel":
        return None
    return Service(url, "easel", _clean(document.value("info", "version")))


def _ollama(url: str, ask: Ask) -> Service | None:
    version, page = ask("/api/version"), ask("/")
    # Open WebUI answers the first one, too.
    if version is None or page is None or not page.text.startswith("Ollama is running"):
        return None
    return Service(url, "ollama", _clean(version.value("version")), can_unload=True)


def _by_models(url: str, ask: Ask) -> Service | None:
    """By GET /v1/models, which all others have."""
    models = ask("/v1/models")
    if models is None:
        return None
    entries = models.value("data")
    entries = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    owner = next((str(entry["owned_by"]) for entry in entries if "owned_by" in entry), "")
    needs_key = models.status in (401, 403)
    kind = "llama-server" if models.server == "llama.cpp" else _OWNERS.get(owner)
    if kind == "llama-server":
        return _llama_server(url, ask, needs_key=needs_key)
    if kind == "llama-swap" or (kind is None and _lists(ask("/running"), "running")):
        return Service(url, "llama-swap", needs_key=needs_key, can_unload=True)
    if kind == "lmstudio" or _is_lmstudio(ask):
        return _lmstudio(url, ask)
    version = ask("/version")
    if kind == "vllm" or (needs_key and version and version.value("version") and _is_vllm(ask)):
        return _vllm(url, ask, _clean(version.value("version")) if version else "", needs_key=needs_key)
    if entries:
        return Service(url, "unknown", name=_clean(f"with OpenAI's API, of {owner}" if owner else ""))
    return None


def _llama_server(url: str, ask: Ask, *, needs_key: bool) -> Service:
    properties = ask("/props")
    is_router = properties is not None and properties.value("role") == "router"
    build = _clean(properties.value("build_info") if properties else "")
    # Some versions list their models without the key, and answer nothing else.
    if needs_key or (properties is not None and properties.status in (401, 403)):
        return Service(url, "llama-server", build, needs_key=True, why_not="it wants a key")
    why_not = "" if is_router else "it has one model and cannot unload it; start it without -m (router mode)"
    return Service(url, "llama-server", build, can_unload=is_router, why_not=why_not)


def _is_lmstudio(ask: Ask) -> bool:
    models = ask("/api/v0/models") or Answer(404)
    return _lists(models, "data") and any(
        "compatibility_type" in entry for entry in models.value("data") or ()
    )


def _lmstudio(url: str, ask: Ask) -> Service:
    # LM Studio answers 200 to paths that it does not have.
    can_unload = _lists(ask("/api/v1/models"), "models")
    why_not = "" if can_unload else "its REST API /api/v1 came with version 0.4; update LM Studio"
    return Service(url, "lmstudio", can_unload=can_unload, why_not=why_not)


def _is_vllm(ask: Ask) -> bool:
    document = ask("/openapi.json")
    return document is not None and "vllm" in str(document.value("info", "title")).lower()


def _vllm(url: str, ask: Ask, version: str, *, needs_key: bool) -> Service:
    sleeping = ask("/is_sleeping")
    can_unload = sleeping is not None and isinstance(sleeping.value("is_sleeping"), bool)
    why_not = "" if can_unload else "start it with VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode"
    return Service(url, "vllm", version, needs_key=needs_key, can_unload=can_unload, why_not=why_not)


def _lists(answer: Answer | None, name: str) -> bool:
    return answer is not None and isinstance(answer.value(name), list)


def _texts(values: Any) -> tuple[str, ...]:
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    return tuple(value for value in values if isinstance(value, str)) if is_list else ()


def _clean(text: object) -> str:
    """What a server says of itself, short and without control characters: it is shown in a terminal."""
    return "".join(filter(str.isprintable, str(text or "")))[:_MAX_NAMED_CHARS]
