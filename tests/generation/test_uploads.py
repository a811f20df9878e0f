"""What is kept for the engine while a request waits: in memory if it is small, else on disk."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from compiler import Size, compile_workflow
from errors import InvalidImage, InvalidValue, JobTimedOut, RequestCancelled
from generation import Pictures, uploads
from generation.uploads import Uploads, uploads_of, with_source
from pictures import read_image
from tests.compiler.catalogues import (
    CATALOGUE,
    IMAGES,
    STITCHED,
    image_request,
    with_workflow,
    write_sources,
)
from tests.conftest import ROOT, MakeApp
from tests.pictures.pictures import decoded, encoded, pattern

STATUS = Path("/proc/self/status")


def test_each_file_is_read_back_whatever_the_order() -> None:
    kept = Uploads()
    contents = {f"{index}.png": os.urandom(1000 + index) for index in range(16)}
    for name, data in contents.items():
        kept.add(name, data)
    assert list(kept.names()) == list(contents)
    for name in reversed(contents):
        assert kept.data(name) == contents[name]
    kept.close()
    kept.close()


def test_large_files_are_on_disk_and_are_gone_when_the_request_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def open_files() -> int:
        """Those of this test: other threads of the process open and close some, too."""
        targets = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                targets.append(os.readlink(f"/proc/self/fd/{number}"))
        return sum(target.startswith(str(tmp_path)) for target in targets)

    assert open_files() == 0
    closed, dropped = Uploads(), Uploads()
    for kept in (closed, dropped):
        kept.add("a.png", bytes(uploads.MAX_IN_MEMORY_BYTES))
        assert open_files() <= (1 if kept is closed else 2)
        kept.add("b.png", b"more")
        assert kept.data("b.png") == b"more"
    assert open_files() == 2
    closed.close()
    del dropped, kept
    assert open_files() == 0


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc to read the peak memory")
def test_sixteen_large_images_take_the_memory_of_one() -> None:
    program = f"""
import os, re
from pathlib import Path
from io import BytesIO
from PIL import Image
from compiler import Plan, Size
from generation.uploads import uploads_of
from generation import Pictures
from pictures import read_image
from types import SimpleNamespace
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("{STATUS}").read_text())[1])
buffer = BytesIO()
Image.effect_noise((2800, 2800), 90).convert("RGB").save(buffer, "JPEG", quality=80)
image = read_image(buffer.getvalue())
plan = SimpleNamespace(size=Size(64, 64), canvas=Size(64, 64))
uploads_of("one", Pictures(image, more=(image,)), plan)
before = peak()
kept = uploads_of("sixteen", Pictures(image, more=(image,) * 15), plan)
print(peak() - before, sum(len(kept.data(name)) for name in kept.names()))
"""
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, timeout=120
    )
    more_kib, kept_bytes = map(int, process.stdout.split())
    assert kept_bytes > 100_000_000
    assert more_kib * 1024 < 30_000_000


def test_a_full_disk_is_an_error_that_names_it(tmp_path: Path) -> None:
    program = """
import resource, signal
from generation.uploads import Uploads
from system_errors import shortage_in
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
kept = Uploads()
try:
    kept.add("a.png", bytes(20_000_000))
    kept.add("b.png", bytes(1))
except OSError as error:
    print(type(shortage_in(error)).__name__)
"""
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=180
    )
    assert (process.stdout, process.stderr) == ("StoreFull\n", "")


def test_the_names_in_the_graph_are_those_of_the_uploads() -> None:
    first, second, third = (read_image(encoded(pattern(width, 40))) for width in (256, 30, 20))
    pictures = Pictures(replace(first, height=256), more=(second, third))
    request = with_source(image_request(model="sd-1.5", task="edit", id="r1"), pictures)
    assert request.source is not None
    assert request.source.images == (
        "easel/r1-image.png [temp]",
        "easel/r1-image-2.png [temp]",
        "easel/r1-image-3.png [temp]",
    )
    one = replace(request, source=replace(request.source, size=Size(256, 256), more=()))
    plan = compile_workflow(one, CATALOGUE).plan
    kept = uploads_of("r1", Pictures(first, more=(second, third)), plan)
    assert list(kept.names()) == ["r1-image.png", "r1-image-2.png", "r1-image-3.png"]
    assert [decoded(kept.data(name)).size for name in kept.names()] == [(256, 256), (30, 40), (20, 40)]
    assert re.fullmatch(r"[0-9a-z-]+", request.id)


def test_no_more_images_are_converted_for_a_client_that_has_gone(make_app: MakeApp) -> None:
    generator = make_app().extensions["easel"].generator
    image = read_image(encoded(pattern(256, 256)))
    broken = replace(image, data=image.data[:80])
    request = replace(image_request(model="sd-1.5", task="vary"), prompt="")
    plan = compile_workflow(with_source(request, Pictures(image)), CATALOGUE).plan
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise RequestCancelled("gone")

    with pytest.raises(RequestCancelled):
        uploads_of("r1", Pictures(image, more=(image, broken, broken)), plan, check)
    assert generator.prepare(request, timeout_s=60, pictures=Pictures(image), cancelled=lambda: True)


def test_a_request_ends_while_its_images_are_read(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app(**write_sources(with_workflow(STITCHED, tasks=["edit"], images=IMAGES), tmp_path))
    generator = app.extensions["easel"].generator
    image = read_image(encoded(pattern(256, 256)))
    request, pictures = image_request(model="mine", task="edit"), Pictures(image, more=(image,))
    with pytest.raises(RequestCancelled):
        generator.prepare(request, timeout_s=60, pictures=pictures, cancelled=lambda: True)
    with pytest.raises(JobTimedOut):
        generator.prepare(request, timeout_s=0, pictures=pictures)


def test_a_markup_of_another_size_or_beside_a_mask_is_no_picture_of_a_request() -> None:
    image, small = read_image(encoded(pattern(64, 64))), read_image(encoded(pattern(32, 64)), param="markup")
    with pytest.raises(InvalidImage, match="32x64 pixels, and the first image 64x64"):
        Pictures(image, markup=small)
    with pytest.raises(InvalidValue, match="Send one of them"):
        Pictures(image, mask=image, markup=image)
