"""What systemd gives a service, sockets that listen already, and what the service tells it: ready, and stopping.

gunicorn would say that it is ready before its first worker has started. A program that is started after Easel would get
no answer then, so gunicorn's message is suppressed and Easel sends its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Mapping, MutableMapping

_FIRST_DESCRIPTOR = 3


class Notifier:
    """Sends messages to the service manager that started this process; does nothing if there is none.

    Only the main process of a service may send (`NotifyAccess=main`), so that a worker tells its master by a pipe.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Takes NOTIFY_SOCKET out of `environment`, where gunicorn would find it, and would pass it to its children."""
        self._address = environment.pop("NOTIFY_SOCKET", "")
        self._pipe: tuple[int, int] | None = None

    def announce_ready(self, status: str) -> None:
        """Call it in the master, before it forks workers: the manager is told, with `status` as the text that it shows,
        when the first worker has called `worker_is_ready`. Raises OSError or RuntimeError if the system gives no pipe
        or no thread."""
        if self._address:
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            threading.Thread(target=self._wait_for_worker, args=(status,), daemon=True).start()

    def worker_is_ready(self) -> None:
        """Call it in each worker, when it takes requests."""
        if self._pipe is not None:
            # Only the first byte is read. The pipe is full after tens of thousands of workers.
            with contextlib.suppress(BlockingIOError):
                os.write(self._pipe[1], b"\0")

    def stopping(self) -> None:
        """Tell the manager that the stop has begun. Call it in the master; a signal handler may."""
        self._send("STOPPING=1")

    def _wait_for_worker(self, status: str) -> None:
        assert self._pipe is not None
        if os.read(self._pipe[0], 1):
            self._send(f"READY=1\nSTATUS={status}")

    def _send(self, message: str) -> None:
        """A manager that does not listen any more is no reason to stop serving."""
        if not self._address:
            return
        # An address in Linux's abstract namespace begins with a zero byte, which no environment can hold.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message.encode(), address)


def inherits_sockets(environment: Mapping[str, str]) -> bool:
    """Whether the service manager has opened sockets, of any kind, for this process."""
    return _inherited_count(environment) > 0


def inherited_addresses(environment: Mapping[str, str]) -> list[tuple[str, int]]:
    """Address and port of the TCP sockets that the service manager has opened for this process."""
    addresses = []
    for descriptor in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + _inherited_count(environment)):
        with socket.socket(fileno=os.dup(descriptor)) as listener:
            if listener.family in (socket.AF_INET, socket.AF_INET6):
                addresses.append(listener.getsockname()[:2])
    return addresses


def _inherited_count(environment: Mapping[str, str]) -> int:
    """The variables may have been inherited from another program, for which the sockets are."""
    try:
        is_ours = int(environment.get("LISTEN_PID", "0")) == os.getpid()
        return int(environment.get("LISTEN_FDS", "0")) if is_ours else 0
    except ValueError:
        return 0
