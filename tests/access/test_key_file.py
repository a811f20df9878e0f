"""The key file: what counts while it is changed, damaged or gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from access import ANONYMOUS, Actor, AuditLog, Gate, KeyFile, Limits
from access.keys import digest_of
from errors import InvalidKey, InvalidValue, KeyEnded, KeyNotFound, KeysUnreadable
from tests.conftest import ROOT


def names(file: KeyFile) -> list[str]:
    return [key.name for key in file.current().keys]


def test_a_key_is_found_by_its_text_which_is_nowhere_in_the_file(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    key, text = gate.keys.add("phone", ["draw"], Limits(max_steps=4))
    assert gate.caller_of(text.encode()) == key.caller
    assert (key.caller.name, key.caller.scopes, key.caller.limits.max_steps) == ("phone", {"draw"}, 4)
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or text.encode() not in file.read_bytes()
    assert os.stat(tmp_path / "keys.json").st_mode & 0o777 == 0o600
    assert text not in repr(key)
    assert len(text) == len("easel_") + 43  # 256 bits


def test_without_keys_everybody_may_everything_and_the_first_key_closes_the_server(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    assert gate.caller_of(b"anything") is ANONYMOUS
    _, text = Gate(tmp_path).keys.add("phone", ["draw"])  # another process
    with pytest.raises(InvalidKey):
        gate.caller_of(b"anything")
    assert gate.caller_of(text.encode()).name == "phone"


def test_a_server_without_valid_keys_stays_closed(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    _, text = gate.keys.add("phone", ["draw"])
    gate.keys.revoke("phone")
    with pytest.raises(KeyEnded):
        gate.caller_of(text.encode())
    assert gate.needs_key
    assert Gate(tmp_path / "other", always_closed=True).needs_key


def test_keys_of_the_settings_have_all_scopes_and_names_that_no_named_key_can_have(tmp_path: Path) -> None:
    gate = Gate(tmp_path, ["one", "two"])
    caller = gate.caller_of(b"two")
    assert (caller.name, caller.key, caller.may("operate")) == ("api_keys:2", "api_keys:2", True)
    with pytest.raises(InvalidValue):
        gate.keys.add("api_keys:2", ["draw"])


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            " ",
            "a b",
            "a\nb",
            "a\r\nx: y",
            "a\x1b[31m",
            "a:b",
            "a/b",
            "../x",
            "x" * 65,
            "a\u202eb",
            "a\u0000",
        ),
        *("anonymous", "Command", "ＡＮＯＮＹＭＯＵＳ", '"', "a,b"),
    ],
)
def test_a_name_that_could_mislead_a_log_or_a_header_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        KeyFile(tmp_path / "keys.json").add(name, ["draw"])
    assert caught.value.param == "name"
    assert not (tmp_path / "keys.json").exists()


def test_a_name_is_taken_however_it_is_written_until_its_key_is_revoked(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    file.add("Büro", ["draw"])
    for same in ("büro", "BÜRO", "Bu\u0308ro"):
        with pytest.raises(InvalidValue):
            file.add(same, ["draw"])
    old = file.revoke("büro")
    new, _ = file.add("büro", ["draw"])
    assert old.id != new.id
    assert file.revoke("Büro").id == new.id
    with pytest.raises(KeyNotFound):
        file.revoke("nobody")


@pytest.mark.parametrize("scopes", [[], ["all"], ["draw", "root"]])
def test_unknown_scopes_are_refused(tmp_path: Path, scopes: list[str]) -> None:
    with pytest.raises(InvalidValue):
        KeyFile(tmp_path / "keys.json").add("phone", scopes)


def test_a_key_is_valid_until_it_expires(tmp_path: Path) -> None:
    now = [1000.0]
    file = KeyFile(tmp_path / "keys.json", clock=lambda: now[0])
    with pytest.raises(InvalidValue):
        file.add("old", ["draw"], expires=999)
    key, _ = file.add("phone", ["draw"], expires=2000)
    assert [key.state(time) for time in (1999.9, 2000)] == ["active", "expired"]


def damaged_contents() -> list[bytes]:
    good: dict[str, Any] = {"id": "0" * 12, "name": "x", "sha256": "0" * 64, "scopes": ["draw"], "created": 1}

    def with_key(**changes: Any) -> bytes:
        return json.dumps({"version": 1, "keys": [{**good, **changes}]}).encode()

    return [
        *(
            b"",
            b"\x00\xff",
            b"null",
            b"[]",
            b"{}",
            b'{"version": 1}',
            b'{"version": 2, "keys": []}',
            b"[" * 100_000,
        ),
        *(
            b'{"version": 1, "keys": {}}',
            b'{"version": 1, "keys": [], "open": true}',
            b'{"version": 1, "keys": [7]}',
        ),
        with_key(scopes=["everything"]),
        with_key(scopes="draw"),
        with_key(sha256="abc"),
        with_key(id="../../etc"),
        with_key(name="a\nb"),
        with_key(created="now"),
        with_key(revoked=True),
        with_key(limits={"picturs_per_minute": 3}),
        with_key(limits={"max_steps": "4"}),
        with_key(limits={"concurrent": 0}),
        with_key(limits={"models": []}),
        with_key(limit={}),
        json.dumps({"version": 1, "keys": [good, good]}).encode(),
    ]


@pytest.mark.parametrize("content", damaged_contents(), ids=range(len(damaged_contents())))
def test_a_damaged_file_leaves_the_keys_as_they_were_and_opens_nothing(
    tmp_path: Path, content: bytes
) -> None:
    gate = Gate(tmp_path)
    _, text = gate.keys.add("phone", ["draw"])
    assert gate.caller_of(text.encode()).name == "phone"
    gate.keys.path.write_bytes(content)

    late = Gate(tmp_path)  # a worker that starts later
    for each in (gate, late):
        assert each.caller_of(text.encode()).name == "phone"
        assert each.problem is not None
        assert "keys.last_good.json" in each.problem.message
        with pytest.raises(InvalidKey):
            each.caller_of(b"")
    with pytest.raises(KeysUnreadable):
        gate.keys.add("other", ["draw"])
    assert gate.keys.path.read_bytes() == content

    started = Gate(tmp_path)
    started.keys.begin()  # a server that starts has no valid key
    with pytest.raises(KeysUnreadable):
        started.caller_of(text.encode())
    assert started.needs_key

    gate.keys.path.write_bytes((tmp_path / "keys.last_good.json").read_bytes())
    for each in (gate, late, started):
        assert each.caller_of(text.encode()).name == "phone"
        assert each.problem is None


def test_a_file_that_is_deleted_opens_nothing(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    _, text = gate.keys.add("phone", ["draw"])
    gate.keys.current()
    gate.keys.path.unlink()
    assert gate.caller_of(text.encode()).name == "phone"
    started = Gate(tmp_path)
    started.keys.begin()
    assert started.needs_key
    with pytest.raises(InvalidKey):
        started.caller_of(b"")
    with pytest.raises(KeysUnreadable):
        started.keys.add("other", ["draw"])


def test_a_worker_that_starts_after_the_damage_knows_what_was_changed_since_the_server_started(
    tmp_path: Path,
) -> None:
    first = KeyFile(tmp_path / "keys.json")
    first.add("phone", ["draw"])
    master = KeyFile(tmp_path / "keys.json")
    master.begin()
    worker = KeyFile(tmp_path / "keys.json")
    first.revoke("phone")
    assert worker.current().keys[0].revoked is not None
    master.path.write_text("nonsense")
    assert master.current().keys[0].revoked is not None


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_something_else_in_place_of_the_file_counts_as_damage(tmp_path: Path, kind: str) -> None:
    gate = Gate(tmp_path)
    _, text = gate.keys.add("phone", ["draw"])
    gate.keys.current()
    gate.keys.path.unlink()
    if kind == "folder":
        gate.keys.path.mkdir()
    elif kind == "pipe":
        os.mkfifo(gate.keys.path)
    else:
        gate.keys.path.symlink_to(tmp_path / "nowhere")
    assert gate.caller_of(text.encode()).name == "phone"
    assert gate.problem is not None


def test_two_processes_that_add_keys_at_once_lose_none(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from access import KeyFile\n"
        "for number in range(25): KeyFile(Path(sys.argv[1])).add(f'{sys.argv[2]}-{number}', ['draw'])"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "keys.json")]
    processes = [subprocess.Popen([*arguments, name], cwd=ROOT) for name in ("a", "b")]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert sorted(names(KeyFile(tmp_path / "keys.json"))) == sorted(
        f"{name}-{number}" for name in "ab" for number in range(25)
    )


def test_a_process_that_is_killed_while_it_adds_keys_leaves_a_whole_file(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from access import KeyFile\n"
        "file = KeyFile(Path(sys.argv[1]))\n"
        "for number in range(10_000): file.add(f'{sys.argv[2]}-{number}', ['draw']); print(flush=True)"
    )
    path = tmp_path / "keys.json"
    for attempt in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path), str(attempt)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
        file = KeyFile(path)
        assert len(names(file)) >= 5 * (attempt + 1)
        assert file.problem is None
    KeyFile(path).add("afterwards", ["draw"])  # the lock ended with the process


def test_threads_see_a_change_at_the_next_look(tmp_path: Path) -> None:
    gate, failures = Gate(tmp_path), []
    _, text = gate.keys.add("first", ["draw"])

    def look() -> None:
        seen = [gate.caller_of(text.encode()).name for _ in range(300)]
        failures.extend(name for name in seen if name != "first")

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(20):
        gate.keys.add(f"key-{number}", ["draw"])
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(names(gate.keys)) == 21


def test_a_command_of_this_installation_has_a_key_as_soon_as_keys_are_needed(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    assert gate.command_key() is None
    gate.keys.add("phone", ["draw"])
    key = gate.command_key()
    assert key is not None
    assert Gate(tmp_path).command_key() == key
    assert gate.caller_of(key.encode()).name == "command"
    assert os.stat(tmp_path / "command.key").st_mode & 0o777 == 0o600
    for other in (b"easel_command_", key.encode()[:-1], key.encode() + b"x"):
        with pytest.raises(InvalidKey):
            gate.caller_of(other)
    (tmp_path / "command.key").write_text("easel_command_")
    with pytest.raises(InvalidKey):
        gate.caller_of(b"easel_command_")
    assert gate.command_key() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files for others")
def test_what_root_makes_is_for_the_owner_of_the_state_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, 12_345, 12_346)
    gate = Gate(tmp_path)
    gate.add_key("phone", ["draw"], {"requests_per_day": 5})
    assert gate.command_key()
    AuditLog(tmp_path / "audit.jsonl").record(Actor("command", "user root"), "keys.add", {}, "done")
    made = [path for path in tmp_path.rglob("*") if not path.name.startswith(".")]
    assert len(made) >= 8
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(12_345, 12_346)}


def test_the_digest_is_sha_256() -> None:
    assert digest_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
