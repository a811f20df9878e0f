"""ComfyUI's routes for the files of its user, such as the workflows that its editor lists: `/userdata`.

Left out: `/v2/userdata`, moving files, and several users.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from atomic_file import write_atomic
from sketch.folders import Folders, resolve_inside

BAD_NAME = 'Invalid filename. Please avoid special characters like :\\/*?"<>|'
"""What ComfyUI says of any file that it cannot write"""


class UserFiles:
    """The handlers of the routes."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def add_routes(self, app: web.Application, prefix: str) -> None:
        """Add the routes to `app`, below `prefix`."""
        app.router.add_get(f"{prefix}/users", self._users)
        app.router.add_get(f"{prefix}/userdata", self._list)
        app.router.add_get(f"{prefix}/userdata/{{file}}", self._read)
        app.router.add_post(f"{prefix}/userdata/{{file}}", self._write)
        app.router.add_delete(f"{prefix}/userdata/{{file}}", self._delete)

    async def _users(self, request: web.Request) -> web.Response:
        return web.json_response({"storage": "server", "migrated": self._folders.user_files.exists()})

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        directory = query.get("dir", "")
        if not directory:
            return web.Response(status=400, text="Directory not provided")
        path = self._path(directory)
        if path is None:
            return web.Response(status=403, text="Invalid directory")
        if not os.path.exists(path):
            return web.Response(status=404, text="Directory not found")
        names = sorted(_files_in(path, recurse=_is_true(query.get("recurse", ""))))
        if _is_true(query.get("full_info", "")):
            return web.json_response([_info(path / name, path) for name in names])
        if _is_true(query.get("split", "")):
            return web.json_response([[name, *name.split("/")] for name in names])
        return web.json_response(names)

    async def _read(self, request: web.Request) -> web.StreamResponse:
        path = self._path(request.match_info["file"])
        if path is None or not os.path.exists(path):
            return web.Response(status=403 if path is None else 404)
        return web.FileResponse(path, headers={"Content-Disposition": "attachment"})

    async def _write(self, request: web.Request) -> web.Response:
        path = self._path(request.match_info["file"])
        if path is None:
            return web.Response(status=403)
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
        # Path.exists raises an error for a name that is too long.
        if request.query.get("overwrite", "true") == "false" and os.path.exists(path):
            return web.Response(status=409, text="File already exists")
        try:
            write_atomic(path, await request.read())
        except OSError:
            return web.Response(status=400, reason=BAD_NAME)
        self._folders.register(path)
        info = _info(path, self._folders.user_files)
        return web.json_response(info if _is_true(request.query.get("full_info", "")) else info["path"])

    async def _delete(self, request: web.Request) -> web.Response:
        path = self._path(request.match_info["file"])
        if path is None or not os.path.exists(path):
            return web.Response(status=403 if path is None else 404)
        path.unlink()
        return web.Response(status=204)

    def _path(self, name: str) -> Path | None:
        """The file or folder of this name, which is decoded a second time; None if it is outside. ValueError for a name that
        no file can have, as ComfyUI: the answer is 500."""
        name = unquote(name) if "%" in name else name
        if "\0" in name:
            raise ValueError("embedded null byte")
        return resolve_inside(self._folders.user_files, name)


def _files_in(folder: Path, *, recurse: bool) -> Iterator[str]:
    """The names of its files; ComfyUI leaves out hidden ones."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield entry.name
        elif recurse:
            yield from (f"{entry.name}/{name}" for name in _files_in(entry, recurse=True))


def _info(path: Path, base: Path) -> dict[str, Any]:
    status = path.stat()
    return {
        "path": os.path.relpath(path, base).replace(os.sep, "/"),
        "size": status.st_size,
        "modified": int(status.st_mtime * 1000),
        "created": int(status.st_ctime * 1000),
    }


def _is_true(text: str) -> bool:
    return text.lower() == "true"
