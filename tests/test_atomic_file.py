"""New files are written in one step and never over another one, also where there are no hard links."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from atomic_file import create_atomic

Link = Callable[[Path, Path], None]


def no_links(source: Path, target: Path) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(source), None, str(target))


@pytest.mark.parametrize("link", [os.link, no_links])
def test_a_new_file_is_written_and_nothing_else_is_left(tmp_path: Path, link: Link) -> None:
    create_atomic(tmp_path / "folder/a.yaml", b"a", link=link)
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "folder").iterdir()] == [("a.yaml", b"a")]
    assert (tmp_path / "folder/a.yaml").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("link", [os.link, no_links])
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_has_the_name_already_stays(tmp_path: Path, link: Link, kind: str) -> None:
    path = tmp_path / "a.yaml"
    if kind == "file":
        path.write_bytes(b"before")
    elif kind == "link":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
    before = path.lstat()
    with pytest.raises(FileExistsError):
        create_atomic(path, b"after", link=link)
    assert path.lstat() == before
    assert list(tmp_path.iterdir()) == [path]


def test_another_failure_of_a_link_is_raised_and_leaves_nothing(tmp_path: Path) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    with pytest.raises(OSError, match="No space left"):
        create_atomic(tmp_path / "a.yaml", b"a", link=full)
    assert list(tmp_path.iterdir()) == []
