"""Keeps pictures that are not answered as URLs, in a thread, so that their answers do not wait for the disk."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from errors import EaselError
from image_store import ImageFacts, ImageStore, KeptImage, image_name
from image_store.names import Extension

log = logging.getLogger("easel.images")

MAX_WAITING_BYTES = 128_000_000
"""Pictures that wait for the disk; a request whose picture does not fit beside them keeps it itself"""


class Gallery:
    """One per process; thread-safe, also after a fork. A process that ends in an orderly way keeps first what waits."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._executor: tuple[int, ThreadPoolExecutor] | None = None
        self._waiting_bytes = 0

    def keep(self, data: bytes, extension: Extension, facts: ImageFacts) -> tuple[str, Future[KeptImage]]:
        """The name that it will have, and its keeping. Never raises: a picture that cannot be kept is answered all the same.
        The future raises why."""
        name = image_name(extension)
        with self._lock:
            fits = self._waiting_bytes == 0 or self._waiting_bytes + len(data) <= MAX_WAITING_BYTES
            if fits:
                self._waiting_bytes += len(data)
                try:
                    return name, self._thread().submit(self._keep_later, data, extension, facts, name)
                except RuntimeError:  # no more threads, or the process ends
                    self._waiting_bytes -= len(data)
        future: Future[KeptImage] = Future()
        try:
            future.set_result(self._keep(data, extension, facts, name))
        except Exception as error:
            future.set_exception(error)
        return name, future

    def _thread(self) -> ThreadPoolExecutor:
        if self._executor is None or self._executor[0] != os.getpid():
            self._executor = os.getpid(), ThreadPoolExecutor(1, thread_name_prefix="easel-gallery")
        return self._executor[1]

    def _keep_later(self, data: bytes, extension: Extension, facts: ImageFacts, name: str) -> KeptImage:
        try:
            return self._keep(data, extension, facts, name)
        finally:
            with self._lock:
                self._waiting_bytes -= len(data)

    def _keep(self, data: bytes, extension: Extension, facts: ImageFacts, name: str) -> KeptImage:
        try:
            return self._store.keep(data, extension, facts, name)
        except EaselError as error:
            log.warning("a picture was answered, but is not in the gallery: %s", error.message)
            raise
        except Exception:
            log.exception("a picture was answered, but is not in the gallery")
            raise
