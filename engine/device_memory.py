"""The free memory of this machine's GPU as its driver reports it: NVIDIA's library, or the amdgpu driver's files. For
the times when ComfyUI, which reports the same figure, is down or does not answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_SYSFS = Path("/sys/class/drm")


def free_bytes(sysfs: Path = _SYSFS) -> int | None:
    """Bytes that the GPU has free, for all programs together; None without a GPU that reports it, and with more than
    one: it is then unknown which of them ComfyUI uses."""
    free = [*_nvidia(), *_amd(sysfs)]
    return free[0] if len(free) == 1 else None


def _nvidia() -> Iterator[int]:
    try:
        # Not above: it takes 2 MB in each worker, and is needed only while ComfyUI is down.
        import pynvml  # type: ignore[import-untyped]
    except OSError:  # too many open files
        return
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                yield int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
        finally:
            pynvml.nvmlShutdown()


def _amd(sysfs: Path) -> Iterator[int]:
    for total_file in sorted(sysfs.glob("card[0-9]*/device/mem_info_vram_total")):
        used_file = total_file.with_name("mem_info_vram_used")
        with contextlib.suppress(OSError, ValueError):
            yield int(total_file.read_text()) - int(used_file.read_text())
