"""What named keys add to a request: finding out who sent it, and counting it and its picture for the limits of its key."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from access import Gate, Key, KeyFile
from access.keys import KeyTable, digest_of
from atomic_file import write_atomic
from bench.summary import summarize
from bench.testbed import Testbed
from scratch_folder import ScratchFolder

KEYS = 1000
TIMES, QUICK_TIMES = 2000, 100
_LIMITS = {
    **dict.fromkeys(("requests_per_minute", "pictures_per_minute"), 1_000_000),
    **dict.fromkeys(("requests_per_day", "pictures_per_day"), 1_000_000),
    "concurrent": 8,
}


def measure_keys(testbed: Testbed) -> dict[str, Any]:
    """Without keys, with one that has every limit, and with the same one among 1,000. Uses no server."""
    times = QUICK_TIMES if testbed.options.quick else TIMES
    with ScratchFolder("easel-bench-keys-") as folder:
        gate = Gate(Path(folder))
        none = _measure(gate, b"", times)
        _, text = gate.add_key("bench", ["draw"], _LIMITS)
        one = _measure(gate, text.encode(), times)
        _add_keys(gate.keys, KEYS)
        many = _measure(gate, text.encode(), times)
    return {"keys": KEYS, "none_s": none, "one_s": one, "many_s": many}


def _add_keys(file: KeyFile, number: int) -> None:
    """At once: each addition writes the whole file to the disk."""
    keys = [
        Key(f"{index:012x}", f"key-{index}", digest_of(str(index).encode()), ("draw",), 0.0)
        for index in range(number - 1)
    ]
    write_atomic(file.path, KeyTable([*file.current().keys, *keys]).content(), mode=0o600)


def _measure(gate: Gate, sent: bytes, times: int) -> dict[str, Any]:
    """Of what one request for one picture does."""
    values = []
    for _ in range(times):
        began = time.perf_counter()
        use = gate.admit(gate.caller_of(sent))
        pictures = use.take_pictures(1)
        pictures.begin()
        pictures.ended()
        pictures.end(1, 1.0)
        use.close()
        values.append(time.perf_counter() - began)
    return summarize(values)
