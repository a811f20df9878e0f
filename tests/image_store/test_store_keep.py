"""Keeping and opening images: only complete images can be opened, and only by their names."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

import pytest

from errors import ImageNotFound, StoreFull, StoreUnwritable
from image_store import ImageStore
from image_store.names import Extension

NAME = "3f2b8c1e-9d4a-4f6b-8a7c-0123456789ab.png"


def make_store(directory: Path, *, max_count: int = 100, max_bytes: int = 10_000_000) -> ImageStore:
    return ImageStore(directory, max_count=max_count, max_bytes=max_bytes)


@pytest.mark.parametrize(
    ("extension", "suffix", "mime"),
    [("png", ".png", "image/png"), ("jpeg", ".jpg", "image/jpeg"), ("webp", ".webp", "image/webp")],
)
def test_a_kept_image_can_be_opened_by_its_name(
    tmp_path: Path, extension: Extension, suffix: str, mime: str
) -> None:
    store = make_store(tmp_path / "images")
    kept = store.keep(b"some bytes", extension)
    assert re.fullmatch(
        r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}" + re.escape(suffix), kept.name
    )
    assert (kept.size_bytes, kept.mime) == (10, mime)
    stored = store.open(kept.name)
    assert (stored.data, stored.mime, stored.length) == (b"some bytes", mime, 10)
    assert stored.etag == kept.name.removesuffix(suffix)


def test_an_image_can_be_opened_by_another_store_on_the_same_folder(tmp_path: Path) -> None:
    kept = make_store(tmp_path).keep(b"picture", "png")
    assert make_store(tmp_path).open(kept.name).data == b"picture"


def test_an_image_counts_as_used_when_it_is_complete_not_when_its_writing_began(tmp_path: Path) -> None:
    complete_at: list[float] = []

    def clock() -> float:
        now = 1_000.0 + len(complete_at)
        if [path.stat().st_size for path in tmp_path.glob(".*.part")] == [8]:
            complete_at.append(now)
        return now

    kept = ImageStore(tmp_path, max_count=100, max_bytes=1000, clock=clock).keep(b"complete", "png")
    assert (tmp_path / kept.name).stat().st_mtime in complete_at


def test_the_folder_and_its_files_are_private_to_the_user(tmp_path: Path) -> None:
    directory = tmp_path / "var" / "images"
    kept = make_store(directory).keep(b"picture", "png")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes[kept.name] == 0o600
    assert set(modes.values()) == {0o600}


def test_creating_a_store_writes_nothing(tmp_path: Path) -> None:
    make_store(tmp_path / "images")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/",
        "secret.png",
        f"../{NAME}",
        f"./{NAME}",
        f"/{NAME}",
        f"sub/{NAME}",
        f"..\\{NAME}",
        f"%2e%2e/{NAME}",
        f"{NAME}/",
        f"{NAME}/..",
        f"{NAME}\0",
        f"\0{NAME}",
        f"{NAME}\0.png",
        f"{NAME}\n",
        f" {NAME}",
        f"{NAME}.png",
        NAME.removesuffix(".png"),
        NAME.replace(".png", ".PNG"),
        NAME.replace(".png", ".jpeg"),
        NAME.replace(".png", ".gif"),
        NAME.replace(".png", ".png.part"),
        NAME.replace(".png", ".svg"),
        NAME.upper(),
        NAME.replace("-", ""),
        NAME.replace("-4f6b", "-1f6b"),  # a UUID, but not version 4
        NAME.replace("-8a7c", "-ca7c"),
        NAME.replace("3", "\uff13"),  # FULLWIDTH DIGIT THREE
        NAME.replace("3", "\u0663"),  # ARABIC-INDIC DIGIT THREE
        NAME.replace("-", "\u2010"),
        f".{NAME}",
        f".{NAME.removesuffix('.png')}.part",
        ".tally",
        ".evict.lock",
        "\ud800.png",
        "a" * 100_000,
    ],
)
def test_any_other_name_is_not_found(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "images"
    store = make_store(directory)
    store.keep(b"picture", "png")
    for decoy in (directory / NAME.removesuffix(".png"), directory / "secret.png", tmp_path / NAME):
        decoy.write_bytes(b"secret")
    with pytest.raises(ImageNotFound) as caught:
        store.open(name)
    caught.value.message.encode("utf-8")
    assert len(caught.value.message) < 1000
    assert str(tmp_path) not in caught.value.message


def test_a_symbolic_link_with_an_image_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    directory = tmp_path / "images"
    directory.mkdir()
    (directory / NAME).symlink_to(tmp_path / "secret")
    with pytest.raises(ImageNotFound):
        make_store(directory).open(NAME)


def test_a_folder_or_a_pipe_with_an_image_name_is_not_found(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    os.mkfifo(tmp_path / NAME.replace(".png", ".jpg"))
    for name in (NAME, NAME.replace(".png", ".jpg")):
        with pytest.raises(ImageNotFound):
            make_store(tmp_path).open(name)


def test_no_image_is_found_if_the_folder_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound):
        make_store(tmp_path / "never" / "made").open(NAME)


def test_a_folder_that_was_removed_is_created_again(tmp_path: Path) -> None:
    directory = tmp_path / "images"
    store = make_store(directory)
    first = store.keep(b"one", "png")
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    second = store.keep(b"two", "png")
    assert store.open(second.name).data == b"two"
    with pytest.raises(ImageNotFound):
        store.open(first.name)


def test_a_file_in_place_of_the_folder_is_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(b"in the way")
    store = make_store(tmp_path / "images")
    assert store.open(store.keep(b"picture", "png").name).data == b"picture"
    (moved,) = tmp_path.glob("images.*.corrupt")
    assert moved.read_bytes() == b"in the way"


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_a_tally_that_is_no_file_is_moved_aside_and_images_are_still_evicted(
    tmp_path: Path, kind: str
) -> None:
    store = make_store(tmp_path, max_bytes=30)
    store.keep(b"x" * 10, "png")
    (tmp_path / ".tally").unlink()
    if kind == "folder":
        (tmp_path / ".tally").mkdir()
    elif kind == "pipe":
        os.mkfifo(tmp_path / ".tally")
    else:
        (tmp_path / ".tally").symlink_to(tmp_path / "nowhere")
    for _ in range(5):
        store.keep(b"x" * 10, "png")
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert (tmp_path / ".tally").is_file()


def test_a_file_in_place_of_a_folder_above_is_store_unwritable(tmp_path: Path) -> None:
    """It may be a file of somebody else: the state directory is what a setting says."""
    (tmp_path / "state").write_bytes(b"in the way")
    with pytest.raises(StoreUnwritable) as caught:
        make_store(tmp_path / "state/images").keep(b"picture", "png")
    assert str(tmp_path) not in caught.value.message
    assert (tmp_path / "state").read_bytes() == b"in the way"


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may write anywhere; test_store_disk.py tests a read-only disk"
)
def test_a_read_only_folder_is_store_unwritable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreUnwritable) as caught:
        make_store(tmp_path).keep(b"picture", "png")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EACCES


def test_a_picture_larger_than_max_bytes_is_refused_and_evicts_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path, max_bytes=100)
    kept = store.keep(b"x" * 100, "png")
    with pytest.raises(StoreFull) as caught:
        store.keep(b"x" * 101, "png")
    assert caught.value.details == {"size_bytes": 101, "max_bytes": 100}
    assert store.open(kept.name).length == 100
