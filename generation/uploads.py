"""The input images of an edit and the mask: their file names in the engine, and what is sent under these names."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from tempfile import SpooledTemporaryFile
from types import MappingProxyType

from compiler import ImageRequest, InputPicture, Plan, Size, SourceImage
from engine import upload_name
from generation.values import Pictures
from pictures import InputImage, convert_image, errors_of_image, fit_image, fit_mask

MAX_IN_MEMORY_BYTES = 8_000_000
"""Of the files of one request. If they have more, they wait for the GPU in a file without a name."""


class Uploads:
    """Files for the engine, by name. They may be read by several threads at the same time."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        """Where each is: its position and its length"""
        # `with` is not possible: the file is needed until the request ends.
        self._file = SpooledTemporaryFile(MAX_IN_MEMORY_BYTES)  # noqa: SIM115
        # A request that is refused, or hung up before it is drawn, never calls `close`.
        self._finalizer = weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    def add(self, name: str, data: bytes) -> None:
        """Raises OSError if the disk is full."""
        position = self._file.seek(0, 2)
        self._file.write(data)
        self._places[name] = position, len(data)

    def names(self) -> Iterator[str]:
        """In the order in which they were added"""
        yield from self._places

    def data(self, name: str) -> bytes:
        """The content of one."""
        position, length = self._places[name]
        with self._lock:
            self._file.seek(position)
            return self._file.read(length)

    def close(self) -> None:
        """Free memory and disk space. May be called again."""
        self._finalizer()


def with_source(
    request: ImageRequest, pictures: Pictures | None, inputs: Mapping[str, InputImage] = MappingProxyType({})
) -> ImageRequest:
    """`request` with what the compiler needs to know about the pictures. `inputs`: of the workflow, by name."""
    named = {
        name: InputPicture(Size(*image.size), upload_name(_input_name(request.id, name)))
        for name, image in inputs.items()
    }
    source = None if pictures is None else _source_of(request.id, pictures)
    return replace(request, source=source or request.source, input_images={**request.input_images, **named})


def _source_of(request_id: str, pictures: Pictures) -> SourceImage:
    size = Size(pictures.image.width, pictures.image.height)
    mask = None if pictures.mask is None else upload_name(_mask_name(request_id))
    first, *more = (upload_name(_image_name(request_id, index)) for index in range(1 + len(pictures.more)))
    return SourceImage(size, first, mask, tuple(more))


def uploads_of(
    request_id: str,
    pictures: Pictures | None,
    plan: Plan,
    check: Callable[[], None] = lambda: None,
    inputs: Mapping[str, InputImage] = MappingProxyType({}),
) -> Uploads:
    """PNGs: the image, with its markup, its mask and the `inputs` of the workflow are fitted to the canvas; the other images
    have their own sizes. Raises InvalidImage, OSError if the disk is full, and what `check` raises, which is called before
    each of the others."""
    uploads = Uploads()
    size, canvas = (plan.size.width, plan.size.height), (plan.canvas.width, plan.canvas.height)
    for name, image in inputs.items():
        check()
        uploads.add(_input_name(request_id, name), fit_image(image, size, canvas))
    if pictures is None:
        return uploads
    number = 1 + len(pictures.more)
    with errors_of_image(1, number):
        uploads.add(_image_name(request_id, 0), fit_image(pictures.image, size, canvas, pictures.markup))
    if pictures.mask is not None:
        uploads.add(_mask_name(request_id), fit_mask(pictures.mask, pictures.image, size, canvas))
    for index, image in enumerate(pictures.more, start=1):
        check()
        with errors_of_image(index + 1, number):
            uploads.add(_image_name(request_id, index), convert_image(image))
    return uploads


def _image_name(request_id: str, index: int) -> str:
    return f"{request_id}-image-{index + 1}.png" if index else f"{request_id}-image.png"


def _input_name(request_id: str, name: str) -> str:
    return f"{request_id}-{name}.png"


def _mask_name(request_id: str) -> str:
    return f"{request_id}-mask.png"
