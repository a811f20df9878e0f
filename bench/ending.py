"""How the benchmark's commands end: what they started is stopped, and a failure is one message."""

from __future__ import annotations

import contextlib
import http.client
import signal
import sys
from collections.abc import Iterator

from errors import EaselError


@contextlib.contextmanager
def clean_ending() -> Iterator[None]:
    """A signal that ends this process stops the servers and removes the folders first. What fails while something is
    measured (a server, the network, a disk) ends it with the reason and status 1. For the main thread."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (EaselError, OSError, RuntimeError, http.client.HTTPException) as error:
        sys.exit(f"The benchmark failed: {error}")
