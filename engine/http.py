"""ComfyUI's HTTP routes as calls. Whatever keeps an answer from coming is EngineUnreachable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import requests
import urllib3
from requests.adapters import HTTPAdapter

from engine.values import EngineStats, QueueState
from errors import EngineUnreachable, UploadRefused
from http_session import DirectSession

_LOOK_S = 5.0
"""A look at the job that is being followed, whose caller may want to give up."""
_ANSWER_S = 10.0
_WORK_S = 60.0
"""Validating a graph reads files, and a picture may come over a slow network."""
_UPLOAD_S = 120.0
_POOL = 128
_JSON = {"Content-Type": "application/json"}


class ComfyuiHttp:
    """Answers are plain JSON or the values of this room. Safe for many threads.

    Takes no proxies, passwords or certificates from the environment, and never sends Origin: ComfyUI answers 403 to a
    foreign one.
    """

    def __init__(self, url: str, *, connect_timeout_s: float) -> None:
        self.url = url
        self._connect_timeout_s = connect_timeout_s
        self._session = DirectSession()
        self._session.mount(url, HTTPAdapter(pool_maxsize=_POOL))

    def close(self) -> None:
        self._session.close()

    def submit(self, body: bytes) -> tuple[int, Any]:
        """Status and JSON (None if it is not JSON) of `POST /prompt`."""
        status, _, answer = self._call(
            "POST", "/prompt", timeout_s=_WORK_S, repeat=False, data=body, headers=_JSON
        )
        return status, _json(answer)

    def history(self, prompt_id: str) -> Mapping[str, Any] | None:
        """The entry of an ended job; None while it is pending or running, or unknown."""
        entries = self._object(f"/history/{quote(prompt_id, safe='')}", _LOOK_S)
        entry = entries.get(prompt_id)
        return entry if isinstance(entry, dict) else None

    def queue(self, timeout_s: float = _LOOK_S) -> QueueState:
        state = self._object("/queue", timeout_s)
        return QueueState(_ids(state.get("queue_running")), _ids(state.get("queue_pending")))

    def delete(self, prompt_id: str) -> None:
        """Take a pending job out of the queue; no effect, and no way to tell, if it is not pending."""
        self._post("/queue", {"delete": [prompt_id]})

    def interrupt(self, prompt_id: str) -> None:
        """Stop this job at its next step if it is the running one."""
        self._post("/interrupt", {"prompt_id": prompt_id})

    def free(self) -> None:
        self._post("/free", {"unload_models": True, "free_memory": True})

    def stats(self, timeout_s: float = _ANSWER_S) -> EngineStats:
        answer = self._object("/system_stats", timeout_s)
        system = answer.get("system")
        if not isinstance(system, dict) or "comfyui_version" not in system:
            raise EngineUnreachable(f"What answers at {self.url} is not a ComfyUI.", url=self.url)
        devices = answer.get("devices")
        device = devices[0] if isinstance(devices, list) and devices and isinstance(devices[0], dict) else {}
        return EngineStats(
            version=str(system["comfyui_version"]),
            is_sketch=system.get("easel_sketch") is True,
            device=device.get("name"),
            device_type=device.get("type"),
            vram_total=device.get("vram_total"),
            vram_free=device.get("vram_free"),
            ram_total=system.get("ram_total"),
            ram_free=system.get("ram_free"),
            torch_vram_total=device.get("torch_vram_total"),
            torch_vram_free=device.get("torch_vram_free"),
        )

    def signature(self, class_type: str) -> Any:
        """The `/object_info` entry of one class, or None."""
        return self._object(f"/object_info/{quote(class_type, safe='')}", _WORK_S).get(class_type)

    def upload(self, data: bytes, name: str, subfolder: str, timeout_s: float = _UPLOAD_S) -> None:
        """Store an image in the temp folder, in the place of one that has this name. Raises UploadRefused."""
        status, _, answer = self._call(
            "POST",
            "/upload/image",
            timeout_s=timeout_s,
            files={"image": (name, data, "application/octet-stream")},
            data={"subfolder": subfolder, "type": "temp", "overwrite": "true"},
        )
        stored = _json(answer)
        told = (stored.get("subfolder"), stored.get("name")) if isinstance(stored, dict) else None
        if status != 200 or told != (subfolder, name):
            raise UploadRefused(f"ComfyUI answered {status} to an uploaded image.", status=status)

    def view(self, file: Mapping[str, str]) -> tuple[int, str, bytes]:
        """Status, content type and bytes of a file that a node wrote."""
        return self._call("GET", "/view", timeout_s=_WORK_S, params=file)

    def _object(self, path: str, timeout_s: float = _ANSWER_S) -> dict[str, Any]:
        status, _, answer = self._call("GET", path, timeout_s=timeout_s)
        body = _json(answer)
        if status != 200 or not isinstance(body, dict):
            raise self._odd(path, status)
        return body

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        status, _, _ = self._call("POST", path, data=json.dumps(body).encode(), headers=_JSON)
        if status != 200:
            raise self._odd(path, status)

    def _odd(self, path: str, status: int) -> EngineUnreachable:
        message = f"{self.url}{path} answered {status}, not as a ComfyUI does."
        return EngineUnreachable(message, url=self.url, status=status)

    def _call(
        self, method: str, path: str, *, timeout_s: float = _ANSWER_S, repeat: bool = True, **request: Any
    ) -> tuple[int, str, bytes]:
        """Status, content type and body. A kept connection that ComfyUI has just closed breaks one call, which is
        made once more unless it must not be."""
        try:
            return self._call_once(method, path, timeout_s, request)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if repeat and _broke(error):
                return self._call(method, path, timeout_s=timeout_s, repeat=False, **request)
            raise self._unreachable(error) from error

    def _call_once(
        self, method: str, path: str, timeout_s: float, request: dict[str, Any]
    ) -> tuple[int, str, bytes]:
        with self._session.request(
            method,
            self.url + path,
            timeout=(self._connect_timeout_s, timeout_s),
            stream=True,
            **request,
        ) as answer:
            # Read in one go: requests itself reads in pieces of 10 KB.
            return answer.status_code, answer.headers.get("Content-Type", ""), answer.raw.read()

    def _unreachable(self, error: Exception) -> EngineUnreachable:
        slow = isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError)
        refused = "refused" in str(error)
        reason = "connection refused" if refused else "it took too long" if slow else type(error).__name__
        message = f"ComfyUI at {self.url} does not answer: {reason}."
        return EngineUnreachable(message, url=self.url, refused=refused, slow=slow)


def _broke(error: Exception) -> bool:
    """Whether a connection that stood was closed under the call, rather than refused or slow."""
    cause = error.args[0] if isinstance(error, requests.ConnectionError) and error.args else error
    return isinstance(cause, urllib3.exceptions.ProtocolError)


def _json(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        return None


def _ids(entries: Any) -> tuple[str, ...]:
    """Prompt ids of queue entries `[number, prompt_id, …]` in the order they run; ComfyUI lists them in heap order."""
    listed = [entry for entry in entries or [] if isinstance(entry, list) and len(entry) > 1]
    return tuple(str(entry[1]) for entry in sorted(listed, key=lambda entry: entry[0]))
