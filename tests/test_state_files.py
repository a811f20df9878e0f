"""Damaged files of the state directory are moved aside, and the operating system's errors are named."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from errors import EaselError, OutOfMemory, StateUnwritable, StoreFull, StoreUnwritable, TooManyFiles
from state_files import KeptFile, ensure_folder, read_state, set_aside
from system_errors import shortage_in, write_error


def number(document: Any) -> int:
    if not isinstance(document, int):
        raise TypeError("not a number")
    return document


def test_a_valid_file_is_read_and_a_missing_one_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("5")
    assert read_state(tmp_path / "a.json", number) == 5
    assert read_state(tmp_path / "b.json", number) is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("damage", [b"", b"{", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_moved_aside_with_its_content(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(damage)
    assert read_state(path, number) is None
    (moved,) = tmp_path.iterdir()
    assert moved.name.startswith("a.json.")
    assert moved.name.endswith(".corrupt")
    assert moved.read_bytes() == damage
    assert moved.name in caplog.text


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket"])
def test_something_that_is_not_a_file_is_moved_aside_without_waiting_for_it(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "a.json"
    if kind == "folder":
        (path / "inner").mkdir(parents=True)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    assert read_state(path, number) is None
    if kind != "socket":  # a socket cannot be opened, which is the error of a file without access
        assert not path.exists()
        assert len(list(tmp_path.iterdir())) == 1


def test_a_file_without_access_is_none_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("5")

    def refuse(*arguments: Any, **options: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        assert read_state(path, number) is None
    assert read_state(path, number) == 5


def test_only_the_last_five_damaged_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    milliseconds = itertools.count(1_700_000_000_000)
    monkeypatch.setattr(time, "time_ns", lambda: next(milliseconds) * 1_000_000)
    for index in range(9):
        (tmp_path / "a.json").write_text(f"damage {index}")
        assert set_aside(tmp_path / "a.json", ValueError("damaged")) is not None
    contents = sorted(path.read_text() for path in tmp_path.iterdir())
    assert contents == [f"damage {index}" for index in range(4, 9)]


def test_a_file_in_place_of_a_folder_is_moved_aside_but_not_one_above_it(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("in the way")
    ensure_folder(tmp_path / "folder")
    ensure_folder(tmp_path / "folder")
    assert (tmp_path / "folder").is_dir()
    (tmp_path / "file").write_text("somebody's")
    with pytest.raises(OSError, match="Not a directory"):
        ensure_folder(tmp_path / "file/folder")
    assert (tmp_path / "file").read_text() == "somebody's"


# --- the operating system's errors -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EMFILE, TooManyFiles),
        (errno.ENFILE, TooManyFiles),
        (errno.ENOMEM, OutOfMemory),
        (errno.EACCES, StateUnwritable),
        (errno.EROFS, StateUnwritable),
        (errno.EIO, StateUnwritable),
    ],
)
def test_an_error_of_writing_is_named(code: int, expected: type[EaselError]) -> None:
    error = write_error(OSError(code, os.strerror(code)), "the state directory")
    assert type(error) is expected
    assert type(write_error(OSError(errno.EROFS, "x"), "the store", StoreUnwritable)) is StoreUnwritable


def test_a_shortage_is_found_in_what_an_http_library_wraps() -> None:
    no_file = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    wrapped = requests.ConnectionError(requests.RequestException("pool", no_file))
    assert isinstance(shortage_in(wrapped), TooManyFiles)
    parser_failed = ValueError("a parser failed")
    parser_failed.__cause__ = MemoryError()
    assert isinstance(shortage_in(parser_failed), OutOfMemory)
    assert isinstance(shortage_in(RuntimeError("can't start new thread")), OutOfMemory)
    for other in (ConnectionResetError(), TimeoutError(), RuntimeError("x"), OSError(errno.EACCES, "x")):
        assert shortage_in(other) is None
    circle = ValueError("circle")
    circle.__context__ = KeyError("inner")
    circle.__context__.__context__ = circle
    assert shortage_in(circle) is None


# --- a file that is kept ---------------------------------------------------------------------------------------------


def test_a_kept_file_is_written_again_whatever_happens_to_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "url"
    kept = KeptFile(path, b"content")
    assert kept.restore()
    assert path.read_bytes() == b"content"
    assert not kept.restore()

    def to_link() -> None:
        path.unlink()
        path.symlink_to(tmp_path / "elsewhere")

    harms = [
        path.unlink,
        lambda: path.write_bytes(b"other"),
        lambda: path.write_bytes(b"CONTENT"),
        lambda: (path.unlink(), path.mkdir()),
        lambda: (path.unlink(), os.mkfifo(path)),
        to_link,
        lambda: shutil.rmtree(path.parent),
    ]
    for harm in harms:
        harm()
        assert not kept.is_intact()
        assert kept.restore()
        assert path.is_file()
        assert not path.is_symlink()
        assert path.read_bytes() == b"content"
        assert not kept.restore()


def test_a_kept_file_is_read_only_if_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptFile(tmp_path / "url", b"content")
    kept.restore()
    assert kept.is_intact()
    monkeypatch.setattr("state_files.read_file", lambda path: pytest.fail("it was read"))
    assert kept.is_intact()
    assert not kept.restore()


def test_a_file_that_the_setting_names_as_state_directory_is_never_moved(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("somebody's")
    kept = KeptFile(tmp_path / "state/server-url", b"x")
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        kept.restore()
    assert (tmp_path / "state").read_text() == "somebody's"


def test_too_little_memory_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("5")

    def parse(document: Any) -> int:
        raise MemoryError

    assert read_state(path, parse) is None
    assert read_state(path, number) == 5
