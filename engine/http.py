"""ComfyUI's HTTP routes as methods. Every failure to get a response raises EngineUnreachable; one that is not ComfyUI's,
because this process may open no more files, has the code of that shortage too (`shortage_as`). Every call ends within its
timeout and the time limit of its thread, whatever the server does."""

from __future__ import annotations

import json
import math
import socket
import ssl
import time
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from deadline import time_limit
from engine.credentials import NO_CREDENTIALS, Credentials
from engine.errors import PROXY_ERRORS
from engine.values import EngineStats, QueueState
from errors import EngineAccessDenied, EngineUnreachable, UploadRefused
from http_connections import ConnectionPool, Response
from system_errors import shortage_as

_POLL_TIMEOUT_S = 5.0
"""For polling a job: its caller may want to cancel meanwhile"""
_DEFAULT_TIMEOUT_S = 10.0
_SLOW_TIMEOUT_S = 60.0
"""Validating a graph reads files, and a picture may come over a slow network."""
_UPLOAD_TIMEOUT_S = 120.0
_MAX_KEPT_CONNECTIONS = 128
_JSON = {"Content-Type": "application/json"}
_VIEW = "/view"
_USER_FILES = "/userdata"
_REDIRECTS = frozenset((301, 302, 303, 307, 308))


class ComfyuiHttp:
    """Returns plain JSON or this package's values. Thread-safe.

    Takes no proxies or certificates from the environment, and never sends Origin: ComfyUI answers 403 to a foreign one.
    `credentials` are sent with each call, and to no other server: redirects are not followed.
    """

    def __init__(
        self, url: str, *, connect_timeout_s: float, credentials: Credentials = NO_CREDENTIALS
    ) -> None:
        self.url = url
        self._credentials = credentials
        self._connections = ConnectionPool(
            url,
            connect_timeout_s=connect_timeout_s,
            max_kept=_MAX_KEPT_CONNECTIONS,
            headers=credentials.headers,
            secret_query=credentials.query,
        )
        self._lacks_cancel_route = False
        self.answered_at = -math.inf
        """When ComfyUI's last answer came, on the clock of time.monotonic"""

    def close(self) -> None:
        self._connections.close()

    def forget_routes(self) -> None:
        """Find out again which routes ComfyUI has."""
        self._lacks_cancel_route = False

    def submit(self, body: bytes) -> tuple[int, Any]:
        """Status and JSON (None if the body is not JSON) of `POST /prompt`."""
        status, _, content = self._call(
            "POST", "/prompt", timeout_s=_SLOW_TIMEOUT_S, retry=False, body=body, headers=_JSON
        )
        return status, _parse_json(content)

    def history(self, prompt_id: str) -> Mapping[str, Any] | None:
        """The entry of a finished job; None while it is pending or running, or if it is unknown."""
        entries = self._get_object(f"/history/{quote(prompt_id, safe='')}", _POLL_TIMEOUT_S)
        entry = entries.get(prompt_id)
        return entry if isinstance(entry, dict) else None

    def forget(self, prompt_id: str) -> None:
        """Remove the entry of a finished job from history."""
        self._post("/history", {"delete": [prompt_id]})

    def queue(self, timeout_s: float = _POLL_TIMEOUT_S) -> QueueState:
        state = self._get_object("/queue", timeout_s)
        running, pending = state.get("queue_running"), state.get("queue_pending")
        if not isinstance(running, list) or not isinstance(pending, list):
            raise self._unexpected_response("/queue", 200)
        return QueueState(_prompt_ids(running), _prompt_ids(pending))

    def delete(self, prompt_id: str) -> None:
        """Remove a pending job from the queue. Has no effect, and reports none, if the job is not pending."""
        self._post("/queue", {"delete": [prompt_id]})

    def interrupt(self, prompt_id: str) -> None:
        """Stop this job at its next step if it is the running one."""
        self._post("/interrupt", {"prompt_id": prompt_id})

    def cancel(self, prompt_id: str) -> bool:
        """Cancel this job, pending or running, by the route of newer ComfyUIs, which never stops another job. False if
        this ComfyUI has no such route, which is found out once, or if a proxy does not pass it. A job between the queue
        and its first node may go on, so the caller looks again."""
        if self._lacks_cancel_route:
            return False
        path = f"/api/jobs/{quote(prompt_id, safe='')}/cancel"
        try:
            status, _, content = self._call("POST", path, timeout_s=_POLL_TIMEOUT_S, body=b"", headers=_JSON)
        except EngineAccessDenied:
            return False
        self._lacks_cancel_route = status in (404, 405)
        answer = _parse_json(content)
        return status == 200 and isinstance(answer, dict) and "cancelled" in answer

    def free(self) -> None:
        self._post("/free", {"unload_models": True, "free_memory": True})

    def stats(self, timeout_s: float = _DEFAULT_TIMEOUT_S) -> EngineStats:
        body = self._get_object("/system_stats", timeout_s)
        system = body.get("system")
        if not isinstance(system, dict) or "comfyui_version" not in system:
            raise EngineUnreachable(f"The server at {self.url} is not a ComfyUI.", url=self.url)
        devices = body.get("devices")
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
        """The `/object_info` entry of one class; None if there is none, or none that describes a node."""
        path = f"/object_info/{quote(class_type, safe='')}"
        entry = self._get_object(path, _SLOW_TIMEOUT_S).get(class_type)
        return entry if isinstance(entry, dict) else None

    def upload(self, data: bytes, name: str, subfolder: str, timeout_s: float = _UPLOAD_TIMEOUT_S) -> None:
        """Store an image in the temp folder, replacing a file of the same name. Raises UploadRefused."""
        # Not imported before the first edit: urllib3 takes 1.5 MB in each worker.
        from urllib3.filepost import encode_multipart_formdata

        form, content_type = encode_multipart_formdata(
            [
                ("image", (name, data, "application/octet-stream")),
                *(("subfolder", subfolder), ("type", "temp"), ("overwrite", "true")),
            ]
        )
        status, _, content = self._call(
            "POST", "/upload/image", timeout_s=timeout_s, body=form, headers={"Content-Type": content_type}
        )
        body = _parse_json(content)
        stored_as = (body.get("subfolder"), body.get("name")) if isinstance(body, dict) else None
        if status != 200 or stored_as != (subfolder, name):
            message = f"ComfyUI, or a proxy in front of it, answered {status} to an uploaded image."
            if status == 413:
                megabytes = math.ceil(len(data) / 1e6)
                message += f" Let the proxy pass bodies of {megabytes} MB and more; in nginx: `client_max_body_size 100m;`."
            raise UploadRefused(message, status=status)

    def has_upload(self, name: str, subfolder: str) -> bool:
        """Whether the temp folder has this image."""
        query = urlencode({"filename": name, "subfolder": subfolder, "type": "temp"})
        status, _, _ = self._call("HEAD", f"{_VIEW}?{query}")
        return status == 200

    def view(self, file: Mapping[str, str]) -> tuple[int, str, bytes]:
        """Status, content type and bytes of a file that a node wrote."""
        return self._call("GET", f"{_VIEW}?{urlencode(file)}", timeout_s=_SLOW_TIMEOUT_S)

    def template(self, name: str) -> Any:
        """The JSON of an official workflow template, or of `index`; None if this ComfyUI has none of this name."""
        path = f"/templates/{quote(name, safe='')}.json"
        status, _, content = self._call("GET", path, timeout_s=_SLOW_TIMEOUT_S)
        if status not in (200, 404):
            raise self._unexpected_response(path, status)
        return _parse_json(content) if status == 200 else None

    def user_files(self, folder: str) -> tuple[int, Any]:
        """Status, and the names of the files in a folder of ComfyUI's user: a list of texts if the status is 200."""
        status, _, content = self._call("GET", f"{_USER_FILES}?{urlencode({'dir': folder})}")
        return status, _parse_json(content)

    def user_file(self, path: str) -> tuple[int, bytes]:
        """Status and bytes of a file of ComfyUI's user."""
        status, _, content = self._call("GET", _user_file(path))
        return status, content

    def store_user_file(self, path: str, data: bytes) -> tuple[int, Any]:
        """Store a new file of ComfyUI's user; status 409 if there is one of this name. Status, and what ComfyUI says: its
        path. Not repeated: the second attempt would find the file of the first."""
        status, _, content = self._call(
            *("POST", f"{_user_file(path)}?overwrite=false"),
            timeout_s=_SLOW_TIMEOUT_S,
            retry=False,
            body=data,
            headers=_JSON,
        )
        return status, _parse_json(content)

    def delete_user_file(self, path: str) -> int:
        """Delete a file of ComfyUI's user; the status."""
        return self._call("DELETE", _user_file(path))[0]

    def has_several_users(self) -> bool:
        """Whether this ComfyUI keeps files for several users, and none for a client that names no user."""
        status, _, content = self._call("GET", "/users")
        body = _parse_json(content)
        return status == 200 and isinstance(body, dict) and "users" in body

    def file_metadata(self, folder: str, name: str) -> Any:
        """The metadata of a safetensors file; None if it has none, or this ComfyUI does not say."""
        path = f"/view_metadata/{quote(folder, safe='')}?{urlencode({'filename': name})}"
        status, _, content = self._call("GET", path)
        return _parse_json(content) if status == 200 else None

    def _get_object(self, path: str, timeout_s: float = _DEFAULT_TIMEOUT_S) -> dict[str, Any]:
        status, _, content = self._call("GET", path, timeout_s=timeout_s)
        body = _parse_json(content)
        if status != 200 or not isinstance(body, dict):
            raise self._unexpected_response(path, status)
        return body

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        status, _, _ = self._call("POST", path, body=json.dumps(body).encode(), headers=_JSON)
        if status != 200:
            raise self._unexpected_response(path, status)

    def _unexpected_response(self, path: str, status: int) -> EngineUnreachable:
        if status in PROXY_ERRORS:
            return proxy_failed(self.url, status)
        message = (
            f"Unexpected response from {self.url}{path} (status {status}); the server may not be ComfyUI."
        )
        return EngineUnreachable(message, url=self.url, status=status)

    def _call(
        self,
        method: str,
        target: str,
        *,
        timeout_s: float = _DEFAULT_TIMEOUT_S,
        retry: bool = True,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, str, bytes]:
        """Status, content type and body. With `retry`, a call is repeated once if ComfyUI closed the kept connection
        that it was sent on."""
        try:
            with time_limit(timeout_s):
                response = self._connections.call(
                    method, target, timeout_s=timeout_s, body=body, headers=headers
                )
        except (HTTPException, OSError) as error:
            if retry and _was_connection_closed(error):
                return self._call(
                    method, target, timeout_s=timeout_s, retry=False, body=body, headers=headers
                )
            raise self._unreachable(error) from error
        # ComfyUI itself answers 403 only to a file outside its folders.
        if response.status == 401 or (response.status == 403 and not target.startswith(_VIEW)):
            raise self._access_denied(response)
        if response.status in _REDIRECTS and "location" in response.headers:
            raise self._redirected(response)
        if response.status not in PROXY_ERRORS:
            self.answered_at = time.monotonic()
        return response.status, response.headers.get("content-type", ""), response.content

    def _access_denied(self, response: Response) -> EngineAccessDenied:
        return access_denied(
            self.url,
            response.status,
            ", ".join(response.headers.get_all("www-authenticate", [])),
            self._credentials,
        )

    def _redirected(self, response: Response) -> EngineUnreachable:
        place = _origin(response.headers["location"]) or "another path"
        setting = f"`url` of the engine {entry}" if (entry := self._credentials.entry) else "engine.url"
        return EngineUnreachable(
            f"{self.url} redirects to {place}, which Easel does not follow. If ComfyUI is there, write that address into "
            f"{setting}; if it is a login page, give Easel credentials. {self._credentials.ways_to_give()}",
            url=self.url,
            status=response.status,
        )

    def _unreachable(self, error: Exception) -> EngineUnreachable:
        return shortage_as(EngineUnreachable, error) or no_answer(self.url, error)


def no_answer(url: str, error: Exception) -> EngineUnreachable:
    """The error for a call that `error` ended."""
    slow, refused = isinstance(error, TimeoutError), isinstance(error, ConnectionRefusedError)
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = (
            f"its certificate is not accepted ({error.verify_message}); it must come from a public authority and name the "
            "host of the URL"
        )
    elif isinstance(error, socket.gaierror):
        reason = "its host name cannot be resolved"
    else:
        reason = "connection refused" if refused else "timed out" if slow else type(error).__name__
    return EngineUnreachable(
        f"ComfyUI at {url} does not answer: {reason}.", url=url, refused=refused, slow=slow
    )


def proxy_failed(url: str, status: int) -> EngineUnreachable:
    return EngineUnreachable(
        f"A proxy in front of ComfyUI at {url} answered {status}.", url=url, status=status
    )


def access_denied(url: str, status: int, challenge: str, credentials: Credentials) -> EngineAccessDenied:
    """The error for a response with status 401 or 403. `challenge`: its header `WWW-Authenticate`."""
    message = (
        f"ComfyUI at {url}, or a proxy in front of it, answered {status}. {credentials.remedy(challenge)}"
    )
    return EngineAccessDenied(message, url=url, status=status)


def _origin(location: str) -> str:
    """Scheme, host and port of a redirect's target; empty if it names no host. The rest may contain a token."""
    try:
        target = urlsplit(location)
        port = f":{target.port}" if target.port else ""
    except ValueError:
        return ""
    return f"{target.scheme}://{target.hostname}{port}" if target.hostname else ""


def _was_connection_closed(error: Exception) -> bool:
    """Whether an established connection was closed during the call (and not refused or slow)."""
    return isinstance(error, HTTPException | ConnectionError) and not isinstance(
        error, ConnectionRefusedError
    )


def _user_file(path: str) -> str:
    """The path of the route for a file. Encoded twice, because ComfyUI decodes what still has a `%` after the first time: so
    names may have one, and a proxy that decodes `%2F` does no harm."""
    return f"{_USER_FILES}/{quote(quote(path, safe=''), safe='')}"


def _parse_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _prompt_ids(entries: list[Any]) -> tuple[str, ...]:
    """Prompt ids of queue entries `[number, prompt_id, …]` in the order they run; ComfyUI lists them in heap order."""
    valid = [entry for entry in entries if isinstance(entry, list) and len(entry) > 1]
    return tuple(str(entry[1]) for entry in sorted(valid, key=_number))


def _number(entry: list[Any]) -> float:
    return entry[0] if isinstance(entry[0], int | float) else 0
