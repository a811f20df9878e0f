"""`python -m sketch`: starts the server, prints its address, and exits when its parent process does."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path

from aiohttp import web

from atomic_file import write_atomic
from scratch_folder import ScratchFolder
from sketch.folders import Folders
from sketch.jobs import JobQueue
from sketch.server import Server
from sketch.signatures import FileLists, Signatures
from sketch.simulated_gpu import SimulatedGpu
from sketch.sockets import Sockets
from sketch.worker import Worker

PARENT_CHECK_INTERVAL_S = 1.0
MAX_RECURSION = 50_000
"""A graph is followed along its links, with up to five calls for each node"""
SHUTDOWN_TIMEOUT_S = 1.0
"""For running requests, and again for the worker; the whole shutdown must take less than `process.STOP_TIMEOUT_S`"""


def main() -> None:
    """Read the arguments and serve until stopped."""
    options = argument_parser().parse_args()
    sys.setrecursionlimit(MAX_RECURSION)
    sys.setswitchinterval(0.001)  # while the worker draws, HTTP waits for one interval at most
    if options.data:
        asyncio.run(serve(options, options.data))
        return
    if options.scratch:
        try:
            asyncio.run(serve(options, options.scratch))
        finally:
            shutil.rmtree(options.scratch, ignore_errors=True)
        return
    with ScratchFolder("easel-sketch-") as data:
        asyncio.run(serve(options, data))


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sketch", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 chooses a free port")
    parser.add_argument(
        "--nodes", type=Path, required=True, help="JSON file with the signatures of its nodes"
    )
    parser.add_argument(
        "--files", type=Path, required=True, help='JSON file: {"checkpoints": ["a.safetensors"], …}'
    )
    parser.add_argument("--port-file", type=Path, help="file to write the port to once it listens")
    parser.add_argument("--render-ms", type=float, default=0, help="duration of a sampler in milliseconds")
    parser.add_argument("--gpu", type=Path, help="JSON file with the memory of a simulated GPU")
    parser.add_argument(
        "--data", type=Path, help="folder for output, input and temp; by default one that is deleted at exit"
    )
    parser.add_argument("--scratch", type=Path, help="the same, but it is deleted at exit")
    parser.add_argument("--quiet", action="store_true", help="do not print the address")
    parser.add_argument("--parent-stdin", action="store_true", help="exit when standard input is closed")
    return parser


async def serve(options: argparse.Namespace, data: Path) -> None:
    """Serve until SIGTERM or SIGINT, or with `--parent-stdin` until the parent exits."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if options.parent_stdin:
        threading.Thread(target=_stop_at_end_of_stdin, args=(loop, stop), daemon=True).start()
        parent_check = asyncio.ensure_future(_stop_without_parent(stop, os.getppid()))
    folders = Folders(data)
    jobs = JobQueue(lambda: sockets.send_status())
    signatures = Signatures(options.nodes, FileLists(options.files), folders.input_names)
    sockets = Sockets(lambda: server.status())
    gpu = SimulatedGpu(options.gpu) if options.gpu else None
    server = Server(jobs, signatures, folders, sockets, gpu)
    sockets.start(loop)
    worker = Worker(jobs, signatures, folders, sockets, options.render_ms / 1000, gpu)
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", options.port))
    await web.SockSite(runner, listening).start()
    worker.start()
    _announce(listening.getsockname()[1], options.port_file, quiet=options.quiet)
    await stop.wait()
    if options.parent_stdin:
        parent_check.cancel()
    jobs.close()
    await sockets.close()
    await runner.cleanup()
    await asyncio.to_thread(worker.join, SHUTDOWN_TIMEOUT_S)


def _announce(port: int, port_file: Path | None, *, quiet: bool) -> None:
    if port_file:
        write_atomic(port_file, str(port).encode())
    if quiet:
        return  # whoever started it has a log of its own
    print(f"sketch engine on http://127.0.0.1:{port}", file=sys.stderr, flush=True)


def _stop_at_end_of_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 4096):
        pass
    if not loop.is_closed():
        loop.call_soon_threadsafe(stop.set)


async def _stop_without_parent(stop: asyncio.Event, parent: int) -> None:
    """Needed besides the pipe: a process that the parent forked may keep the other end of the pipe open."""
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_CHECK_INTERVAL_S)
    stop.set()


if __name__ == "__main__":
    main()
