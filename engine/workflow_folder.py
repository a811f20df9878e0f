"""The folder where ComfyUI's editor keeps its workflows. It belongs to ComfyUI's user and is reached over HTTP only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from engine.errors import PROXY_ERRORS
from engine.http import ComfyuiHttp, proxy_failed
from errors import EaselError, InvalidValue, WorkflowExists, WorkflowNotSaved, shorten

_FOLDER = "workflows"
_ENDING = ".json"
_MAX_NAME_BYTES = 200
"""File systems allow 255, with the ending and what people append"""
_MAX_NUMBER = 999
_FORBIDDEN = frozenset('<>:"/\\|?*')
"""What Windows does not allow in names; the slashes would also lead into another folder"""
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_DOWNLOAD = "Download it instead and drop the file on ComfyUI's page."


def workflow_file_name(name: str, param: str | None = None) -> str:
    """The name of the file for a workflow called `name`, with or without `.json`. Raises InvalidValue for what is no name of
    a file on every system, or is not listed by ComfyUI. `param`: the field with the name."""
    stem = name.removesuffix(_ENDING)
    is_valid = (
        0 < len(stem.encode("utf-8", "replace")) <= _MAX_NAME_BYTES
        and stem.isprintable()
        and not _FORBIDDEN & set(stem)
        and stem[0] not in " ."
        and stem[-1] not in " ."
        and not _DEVICES.match(stem)
    )
    if not is_valid:
        raise InvalidValue(
            f"{shorten(name)!r} cannot be the name of a workflow. It must have 1 to {_MAX_NAME_BYTES} bytes of printable "
            f"characters, none of {' '.join(sorted(_FORBIDDEN))}, no space or dot at either end, and be no name of a "
            "device such as nul.",
            param=param,
        )
    return stem + _ENDING


class WorkflowFolder:
    """Stores files in the folder. Never replaces one."""

    def __init__(self, http: ComfyuiHttp) -> None:
        self._http = http

    def save(self, file_name: str, data: bytes, *, numbered: bool) -> str:
        """Store a new file; returns its name. `numbered`: if the name is taken, a number is added, as in `cat (2).json`.
        Raises WorkflowExists, WorkflowNotSaved and EngineUnreachable."""
        taken = self._names()
        for name in _numbered(file_name) if numbered else [file_name]:
            # Where upper and lower case are the same, or somebody was faster, only ComfyUI can say that a name is taken.
            if name not in taken and self._store(name, data):
                return name
        raise WorkflowExists(
            f"ComfyUI has a workflow {shorten(file_name)!r} already, which is not replaced. Choose another name, or none: "
            "then it gets one that is free.",
            file_name=file_name,
        )

    def _names(self) -> frozenset[str]:
        """The names of the files in the folder."""
        status, names = self._http.user_files(_FOLDER)
        if status == 404:
            return (
                frozenset()
            )  # nothing was saved yet; if the route does not exist, the next one does not either
        if status != 200 or not isinstance(names, list):
            raise self._refusal(status)
        return frozenset(name for name in names if isinstance(name, str))

    def _store(self, name: str, data: bytes) -> bool:
        """False if there is a file of this name."""
        path = f"{_FOLDER}/{name}"
        status, stored_as = self._http.store_user_file(path, data)
        if status == 409:
            return False
        if status == 400:
            self._remove_part(path, data)
        if status != 200 or not _is_path(stored_as, path):
            raise self._refusal(status, len(data))
        return True

    def _remove_part(self, path: str, data: bytes) -> None:
        """On a full disk, ComfyUI 0.8.0 and older ones leave the beginning of the file."""
        status, part = self._http.user_file(path)
        if status == 200 and len(part) < len(data) and data.startswith(part):
            self._http.delete_user_file(path)

    def _refusal(self, status: int, size: int = 0) -> EaselError:
        if status in PROXY_ERRORS:
            return proxy_failed(self._http.url, status)
        if status == 500 and self._http.has_several_users():
            reason = "several_users"
            text = "ComfyUI was started with --multi-user, and keeps workflows only for a user who was chosen on its page."
        elif status in (404, 405):
            reason = "no_user_files"
            text = "ComfyUI, or a proxy in front of it, does not let others save workflows (POST /userdata); update ComfyUI."
        elif status == 413:
            reason = "too_large"
            text = f"A proxy in front of ComfyUI does not pass {size} bytes; in nginx: `client_max_body_size 100m;`."
        elif status == 400:
            reason = "not_written"
            text = (
                "ComfyUI could not write the file: its disk is full, it may not write into its user folder, or its file "
                "system does not allow the name. ComfyUI's log says which."
            )
        else:
            reason = "unexpected_answer"
            text = f"ComfyUI, or a proxy in front of it, answered {status} in an unexpected way; see ComfyUI's log."
        return WorkflowNotSaved(f"{text} {_DOWNLOAD}", reason=reason, status=status)


def _is_path(answer: Any, path: str) -> bool:
    """Whether ComfyUI's answer names this file; on Windows with backslashes."""
    return isinstance(answer, str) and answer.replace("\\", "/") == path


def _numbered(file_name: str) -> Iterator[str]:
    stem = file_name.removesuffix(_ENDING)
    yield file_name
    for number in range(2, _MAX_NUMBER + 1):
        yield f"{stem} ({number}){_ENDING}"
