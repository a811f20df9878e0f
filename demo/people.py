"""The people of the demo: each request of the script is sent to Easel at its time, as any client would send it."""

from __future__ import annotations

import base64
import io
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests
from PIL import Image

from demo.llm_server import MODEL
from demo.script import HOUR_S, Act
from http_session import DirectSession

_SIZE = "512x512"
_TIMEOUT_S = 270.0


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a request. `error`: empty if it was answered; `sent_at`, `ended_at`: Unix times."""

    act: Act
    sent_at: float
    ended_at: float
    error: str = ""


class People:
    """`keys`: by the names of the people."""

    def __init__(self, url: str, keys: Mapping[str, str], seconds: float) -> None:
        self._url, self._keys, self._scale = url, keys, seconds / HOUR_S
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._latest: dict[str, bytes] = {}
        """The latest picture of each"""
        self._sent: list[tuple[Act, float]] = []
        self.results: list[Result] = []

    def start(self, acts: Sequence[Act]) -> None:
        """Send each request at its time. Returns at once."""
        started_at = time.monotonic()
        for act in acts:
            due_at = started_at + act.at_s * self._scale
            thread = threading.Thread(target=self._play, args=(act, due_at), daemon=True)
            thread.start()
            self._threads.append(thread)

    def asks(self, mode: str, at: float) -> bool:
        """Whether a request for this mode of the GPU was on its way or answered at this time, in Unix seconds."""
        ended = {id(result.act): result.ended_at for result in self.results}
        return any(
            (act.kind == "chat") == (mode == "inference") and sent_at <= at < ended.get(id(act), math.inf)
            for act, sent_at in list(self._sent)
        )

    def are_done(self) -> bool:
        """Whether all requests were answered."""
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Send no more requests."""
        self._stop.set()

    def _play(self, act: Act, due_at: float) -> None:
        if self._stop.wait(max(0.0, due_at - time.monotonic())):
            return
        send: Callable[[DirectSession, Act], None] = {
            "chat": self._chat,
            "picture": self._draw,
            "edit": self._edit,
        }[act.kind]
        sent_at, error = time.time(), ""
        self._sent.append((act, sent_at))
        try:
            with DirectSession() as session:
                session.headers["Authorization"] = f"Bearer {self._keys[act.who]}"
                send(session, act)
        except (requests.RequestException, ValueError, LookupError, TypeError) as failure:
            error = str(failure) or type(failure).__name__
        self.results.append(Result(act, sent_at, time.time(), error))

    def _chat(self, session: DirectSession, act: Act) -> None:
        body = {
            "model": MODEL,
            "max_tokens": act.tokens,
            "messages": [{"role": "user", "content": act.text}],
        }
        response = session.post(f"{self._url}/v1/chat/completions", json=body, timeout=_TIMEOUT_S)
        if not _document(response)["choices"][0]["message"]["content"]:
            raise ValueError("the answer is empty")

    def _draw(self, session: DirectSession, act: Act) -> None:
        body = {"prompt": act.text, "size": _SIZE, "response_format": "b64_json"}
        self._keep(act, session.post(f"{self._url}/v1/images/generations", json=body, timeout=_TIMEOUT_S))

    def _edit(self, session: DirectSession, act: Act) -> None:
        picture = self._latest.get(act.who) or _blank()
        self._keep(
            act,
            session.post(
                f"{self._url}/v1/images/edits",
                data={"prompt": act.text, "size": _SIZE, "response_format": "b64_json"},
                files={"image": ("picture.png", picture, "image/png")},
                timeout=_TIMEOUT_S,
            ),
        )

    def _keep(self, act: Act, response: requests.Response) -> None:
        picture = base64.b64decode(_document(response)["data"][0]["b64_json"])
        with Image.open(io.BytesIO(picture)) as image:
            if f"{image.width}x{image.height}" != _SIZE:
                raise ValueError(f"a picture of {image.width}x{image.height} came")
        self._latest[act.who] = picture


def _document(response: requests.Response) -> Any:
    """Raises ValueError with the message of an error."""
    document = response.json()
    if response.status_code != 200:
        error = document["error"]
        text = error if isinstance(error, str) else f"{error.get('code')}: {error.get('message')}"
        raise ValueError(f"status {response.status_code}, {text}")
    return document


def _blank() -> bytes:
    """What is edited if nothing was drawn yet."""
    content = io.BytesIO()
    Image.new("RGB", (512, 512), "white").save(content, "PNG")
    return content.getvalue()
