"""The routes for files of ComfyUI's user, and workflows that are saved there: true of 0.3.64, 0.8.0, 0.33.0 and the sketch
engine. Each test deletes what it saves."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from raw_comfyui import Comfy

from engine import Engine, workflow_file_name
from errors import WorkflowExists, WorkflowNotSaved

GRAPH = json.dumps({"nodes": [], "links": [], "version": 0.4, "extra": {"note": "é"}}).encode()


def path_of(name: str) -> str:
    return f"/userdata/{quote(f'workflows/{name}', safe='')}"


class Folder:
    """The workflows of one engine. `name()` gives a new name, whose file is deleted at the end of the test."""

    def __init__(self, comfy: Comfy) -> None:
        self._comfy = comfy
        self.made: list[str] = []

    def name(self, prefix: str = "easel contract") -> str:
        self.made.append(f"{prefix} {uuid.uuid4().hex[:12]}.json")
        return self.made[-1]

    def names(self) -> list[str]:
        response = self._comfy.get("/userdata?dir=workflows")
        return list(response.json()) if response.status_code == 200 else []

    def read(self, name: str) -> bytes:
        # Twice: ComfyUI decodes a name that still has a % once more.
        path = f"/userdata/{quote(quote(f'workflows/{name}', safe=''), safe='')}"
        response = self._comfy.get(path)
        assert response.status_code == 200
        return response.content

    def delete(self, name: str) -> int:
        path = f"/userdata/{quote(quote(f'workflows/{name}', safe=''), safe='')}"
        return self._comfy.delete(path).status_code


@pytest.fixture
def folder(comfy: Comfy) -> Iterator[Folder]:
    folder = Folder(comfy)
    yield folder
    for name in folder.names():
        if any(name.startswith(made.removesuffix(".json")) for made in folder.made):
            assert folder.delete(name) == 204


# --- the routes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_a_file_is_stored_listed_read_and_deleted(comfy: Comfy, folder: Folder, prefix: str) -> None:
    name = folder.name()
    stored = comfy.post(f"{prefix}{path_of(name)}?overwrite=false", data=GRAPH)
    assert (stored.status_code, stored.json()) == (200, f"workflows/{name}")
    assert name in comfy.get(f"{prefix}/userdata?dir=workflows").json()
    assert comfy.get(prefix + path_of(name)).content == GRAPH
    assert comfy.delete(prefix + path_of(name)).status_code == 204
    assert comfy.get(prefix + path_of(name)).status_code == 404
    assert comfy.delete(prefix + path_of(name)).status_code == 404


def test_a_list_can_have_sizes_parts_of_paths_and_subfolders(comfy: Comfy, folder: Folder) -> None:
    name = folder.name()
    comfy.post(path_of(name), data=GRAPH)
    (entry,) = (
        entry for entry in comfy.get("/userdata?dir=workflows&full_info=true").json() if entry["path"] == name
    )
    assert set(entry) == {"path", "size", "modified", "created"}
    assert entry["size"] == len(GRAPH)
    assert [name, name] in comfy.get("/userdata?dir=workflows&split=true").json()
    assert f"workflows/{name}" not in comfy.get("/userdata?dir=.").json()
    assert f"workflows/{name}" in comfy.get("/userdata?dir=.&recurse=true").json()


def test_a_file_is_replaced_unless_overwrite_is_false(comfy: Comfy, folder: Folder) -> None:
    name = folder.name()
    assert comfy.post(path_of(name), data=GRAPH).status_code == 200
    refused = comfy.post(f"{path_of(name)}?overwrite=false", data=b"{}")
    assert (refused.status_code, refused.text) == (409, "File already exists")
    assert folder.read(name) == GRAPH
    assert comfy.post(path_of(name), data=b"{}").status_code == 200
    assert folder.read(name) == b"{}"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("get", "/userdata", 400),
        ("get", "/userdata?dir=../..", 403),
        ("get", "/userdata?dir=easel-has-no-such-folder", 404),
        ("get", "/userdata/..%2F..%2Fx.json", 403),
        ("post", "/userdata/..%2F..%2Fx.json", 403),
        ("post", "/userdata/%252E%252E%252F%252E%252E%252Fx.json", 403),
        ("post", f"/userdata/workflows%2F{'x' * 300}.json", 400),
        ("post", "/userdata/workflows%2Fa%00.json", 500),
        ("post", "/userdata", 405),
    ],
)
def test_what_is_no_file_of_the_user_is_refused(comfy: Comfy, method: str, path: str, status: int) -> None:
    response = getattr(comfy, method)(path, **({"data": b"{}"} if method == "post" else {}))
    assert response.status_code == status


def test_hidden_files_are_not_listed(comfy: Comfy, folder: Folder) -> None:
    name = f".{folder.name()}"
    assert comfy.post(path_of(name), data=GRAPH).status_code == 200
    assert name not in folder.names()
    assert folder.delete(name) == 204


def test_an_engine_for_one_user_lists_no_users(comfy: Comfy) -> None:
    assert "users" not in comfy.get("/users").json()


# --- Engine.save_workflow --------------------------------------------------------------------------


def test_a_workflow_is_saved_where_the_editor_lists_it(engine: Engine, folder: Folder) -> None:
    name = folder.name()
    assert engine.save_workflow(name, GRAPH, numbered=False) == name
    assert name in folder.names()
    assert folder.read(name) == GRAPH


def test_a_name_that_is_taken_is_refused_or_gets_a_number(engine: Engine, folder: Folder) -> None:
    name = folder.name()
    engine.save_workflow(name, GRAPH, numbered=True)
    with pytest.raises(WorkflowExists):
        engine.save_workflow(name, b"{}", numbered=False)
    stem = name.removesuffix(".json")
    saved = [engine.save_workflow(name, b"[%d]" % number, numbered=True) for number in (2, 3)]
    assert saved == [f"{stem} (2).json", f"{stem} (3).json"]
    assert (folder.read(name), folder.read(saved[1])) == (GRAPH, b"[3]")


@pytest.mark.parametrize(
    "prefix", ["50%", "a%41", "%2e%2e%2f", "#a&b=c+d;e", "猫 Ж é 🦊", "it's [a] {b} (c) ~!@$^,"]
)
def test_names_arrive_as_they_are(engine: Engine, folder: Folder, prefix: str) -> None:
    name = folder.name(prefix)
    assert engine.save_workflow(workflow_file_name(name), GRAPH, numbered=False) == name
    assert name in folder.names()
    assert folder.read(name) == GRAPH


def test_a_name_of_the_greatest_length_is_saved(engine: Engine, folder: Folder) -> None:
    name = workflow_file_name(folder.name("x" * 160).removesuffix(".json"))
    assert engine.save_workflow(name, GRAPH, numbered=False) == name
    name = f"{'y' * 300}.json"
    with pytest.raises(WorkflowNotSaved) as caught:
        engine.save_workflow(name, GRAPH, numbered=False)
    assert caught.value.details["reason"] == "not_written"
