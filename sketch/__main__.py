"""`python -m sketch`: starts the server, says where it is, and ends with its parent."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

from aiohttp import web

from atomic_file import write_atomic
from sketch.folders import Folders
from sketch.jobs import JobQueue
from sketch.server import Server
from sketch.signatures import FileLists, Signatures
from sketch.sockets import Sockets
from sketch.worker import Worker

PARENT_CHECK_S = 1.0
GOODBYE_S = 1.0
"""For what still runs when it is told to stop; all of it together stays below the patience of `child.STOP_TIMEOUT_S`"""


def main() -> None:
    """Reads the arguments and serves until told to stop."""
    asked = arguments().parse_args()
    sys.setswitchinterval(0.001)  # while the worker draws, HTTP waits for one interval at most
    if asked.data:
        asyncio.run(serve(asked, asked.data))
        return
    with tempfile.TemporaryDirectory(prefix="easel-sketch-", ignore_cleanup_errors=True) as scratch:
        asyncio.run(serve(asked, Path(scratch)))


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sketch", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--nodes", type=Path, required=True, help="signatures of the nodes it has")
    parser.add_argument(
        "--files", type=Path, required=True, help='JSON: {"checkpoints": ["a.safetensors"], …}'
    )
    parser.add_argument("--port-file", type=Path, help="gets the port once it listens")
    parser.add_argument("--render-ms", type=float, default=0, help="how long a sampler takes")
    parser.add_argument(
        "--data", type=Path, help="keeps output, input and temp here; otherwise they go at exit"
    )
    parser.add_argument("--parent-stdin", action="store_true", help="ends when standard input does")
    return parser


async def serve(asked: argparse.Namespace, data: Path) -> None:
    """Serves until SIGTERM, SIGINT or, if asked, the end of the parent."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if asked.parent_stdin:
        threading.Thread(target=_watch_stdin, args=(loop, stop), daemon=True).start()
        watching = asyncio.ensure_future(_watch_parent(stop, os.getppid()))
    folders = Folders(data)
    jobs = JobQueue(lambda: sockets.send_status())
    signatures = Signatures(asked.nodes, FileLists(asked.files), folders.uploads)
    sockets = Sockets(lambda: server.status())
    server = Server(jobs, signatures, folders, sockets)
    sockets.start(loop)
    worker = Worker(jobs, signatures, folders, sockets, asked.render_ms / 1000)
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=GOODBYE_S)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", asked.port))
    await web.SockSite(runner, listening).start()
    worker.start()
    _announce(listening.getsockname()[1], asked.port_file)
    await stop.wait()
    if asked.parent_stdin:
        watching.cancel()
    jobs.close()
    await sockets.close()
    await runner.cleanup()
    await asyncio.to_thread(worker.join, GOODBYE_S)


def _announce(port: int, port_file: Path | None) -> None:
    if port_file:
        write_atomic(port_file, str(port).encode())
    print(f"sketch engine on http://127.0.0.1:{port}", file=sys.stderr, flush=True)


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 4096):
        pass
    if not loop.is_closed():
        loop.call_soon_threadsafe(stop.set)


async def _watch_parent(stop: asyncio.Event, parent: int) -> None:
    """The pipe alone is not enough: a process that the parent forked may hold its other end open."""
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_CHECK_S)
    stop.set()


if __name__ == "__main__":
    main()
