"""GPUs and memory of this machine, as the drivers and the system say."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SYSFS = Path("/sys/class/drm")
_APPLE_SHARE = 0.75
"""Of the memory of an Apple chip, which the GPU shares, this is what macOS lets it have"""


@dataclass(frozen=True)
class Gpu:
    name: str
    bytes: int


def gpus(sysfs: Path = _SYSFS) -> tuple[Gpu, ...]:
    """The GPUs that can draw: NVIDIA's by their library, AMD's by the files of amdgpu, and that of an Apple chip."""
    return (*_nvidia(), *_amd(sysfs), *_apple())


def memory_bytes() -> int | None:
    """The memory of the machine; None if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def _nvidia() -> Iterator[Gpu]:
    import pynvml  # type: ignore[import-untyped]  # only where somebody asks for GPUs

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                name = pynvml.nvmlDeviceGetName(handle)
                yield Gpu(str(name), int(pynvml.nvmlDeviceGetMemoryInfo(handle).total))
        finally:
            pynvml.nvmlShutdown()


def _amd(sysfs: Path) -> Iterator[Gpu]:
    for total in sorted(sysfs.glob("card[0-9]*/device/mem_info_vram_total")):
        with contextlib.suppress(OSError, ValueError):
            size, name = int(total.read_text()), "AMD GPU"
            with contextlib.suppress(OSError):
                name = total.with_name("product_name").read_text().strip() or name
            yield Gpu(name, size)


def _apple() -> Iterator[Gpu]:
    if platform.system() == "Darwin" and platform.machine() == "arm64" and (total := memory_bytes()):
        yield Gpu("Apple GPU", int(total * _APPLE_SHARE))
