"""`python -m bench.picture_transport`: how a picture gets from a host to a front end, several ways in one run.

Each host is a process, the front end is this one, with a thread for each picture that is under way. In every way the host
says in Redis that a picture is there, so that only the picture's own way differs. The time is that from the finished
picture at the host to its checked SHA-256 in the front end. Every way has Redis servers of its own, one with an
append-only file and one without, and the ways take turns, so that other load on the machine meets all of them."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
import requests

from bench.ending import clean_ending
from bench.processes import cpu_model, peak_memory_mb

SIZES = {"0.3 MB": 300_000, "1.5 MB": 1_500_000, "40 MB": 40_000_000}
AT_ONCE = (1, 8)
PICTURES, LARGE_PICTURES, QUICK_PICTURES = 100, 10, 2
ROUNDS = 2
PART_BYTES = 1_000_000
EXPIRY_S = 120
STREAM_PARTS = 64
"""How many parts a host's stream holds: the oldest are dropped, whether they were read or not"""
WAIT_S = 120.0


class OneKey:
    """The picture is one value, which the command that fetches it deletes."""

    def __init__(self, server: Any, host: str, s3: str | None) -> None:
        self.server = server

    def put(self, name: str, picture: bytes) -> list[str]:
        self.server.set(name, picture, ex=EXPIRY_S)
        return [name]

    def fetch(self, ticket: Sequence[str]) -> bytes:
        return self.server.getdel(ticket[0])

    def forget(self, ticket: Sequence[str]) -> None:
        pass


class Keys(OneKey):
    """A key for each part, written in one pipeline and read by one command."""

    def put(self, name: str, picture: bytes) -> list[str]:
        pipeline = self.server.pipeline(transaction=False)
        names = [f"{name}:{number}" for number in range(len(_parts(picture)))]
        for part_name, part in zip(names, _parts(picture), strict=True):
            pipeline.set(part_name, part, ex=EXPIRY_S)
        pipeline.execute()
        return names

    def fetch(self, ticket: Sequence[str]) -> bytes:
        return b"".join(self.server.mget(ticket))

    def forget(self, ticket: Sequence[str]) -> None:
        self.server.delete(*ticket)


class KeysOneByOne(Keys):
    """The same, but the front end asks for a part when it has the one before it."""

    def fetch(self, ticket: Sequence[str]) -> bytes:
        return b"".join(self.server.get(name) or b"" for name in ticket)


class PartsList(OneKey):
    """A list of the parts, in one pipeline with its expiry; the front end reads part after part."""

    def put(self, name: str, picture: bytes) -> list[str]:
        pipeline = self.server.pipeline(transaction=False)
        for part in _parts(picture):
            pipeline.rpush(name, part)
        pipeline.expire(name, EXPIRY_S)
        pipeline.execute()
        return [name]

    def fetch(self, ticket: Sequence[str]) -> bytes:
        count = int(self.server.llen(ticket[0]))
        return b"".join(self.server.lindex(ticket[0], at) or b"" for at in range(count))

    def forget(self, ticket: Sequence[str]) -> None:
        self.server.delete(ticket[0])


class Stream(OneKey):
    """A bounded stream for each host, with an entry for each part."""

    def __init__(self, server: Any, host: str, s3: str | None) -> None:
        super().__init__(server, host, s3)
        self.name = f"stream:{host}"
        self.last = "0"

    def put(self, name: str, picture: bytes) -> list[str]:
        before, count = self.last, len(_parts(picture))
        for part in _parts(picture):
            entry = self.server.xadd(self.name, {"part": part}, maxlen=STREAM_PARTS, approximate=False)
            self.last = entry.decode()
        return [self.name, before, str(count)]

    def fetch(self, ticket: Sequence[str]) -> bytes:
        name, last, count = ticket
        parts = []
        for _ in range(int(count)):
            found = self.server.xread({name: last}, count=1, block=int(WAIT_S * 1000))
            [entry] = found[name.encode()][0] if isinstance(found, dict) else found[0][1]
            last = entry[0].decode()
            parts.append(entry[1][b"part"])
        return b"".join(parts)


class HostHttp(OneKey):
    """The host keeps the picture and serves it; the front end fetches it on a kept connection."""

    served: dict[str, bytes]

    def __init__(self, server: Any, host: str, s3: str | None) -> None:
        super().__init__(server, host, s3)
        self.session = requests.Session()
        self.session.trust_env = False
        self.url: str | None = None

    def put(self, name: str, picture: bytes) -> list[str]:
        if self.url is None:
            self.served = {}
            listening = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.served))
            threading.Thread(target=listening.serve_forever, daemon=True).start()
            self.url = f"http://127.0.0.1:{listening.server_port}"
        self.served[f"/{name}"] = picture
        return [f"{self.url}/{name}"]

    def fetch(self, ticket: Sequence[str]) -> bytes:
        response = self.session.get(ticket[0], timeout=WAIT_S)
        response.raise_for_status()
        return response.content

    def forget(self, ticket: Sequence[str]) -> None:
        self.session.delete(ticket[0], timeout=WAIT_S).raise_for_status()


def _handler(served: dict[str, bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = (
            -1
        )  # head and picture leave together: apart, the second would wait for the first's acknowledgement
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._answer(served.get(self.path))

        def do_DELETE(self) -> None:
            self._answer(b"" if served.pop(self.path, None) is not None else None)

        def _answer(self, content: bytes | None) -> None:
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class S3(OneKey):
    """An object for each picture. The credentials are those of the environment, as boto3 reads them."""

    bucket = "pictures"

    def __init__(self, server: Any, host: str, s3: str | None) -> None:
        super().__init__(server, host, s3)
        import boto3  # only this way needs it
        from botocore.config import Config

        config = Config(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            proxies={},
        )
        self.client = boto3.client("s3", endpoint_url=s3, config=config, region_name="us-east-1")
        with contextlib.suppress(
            self.client.exceptions.BucketAlreadyOwnedByYou, self.client.exceptions.BucketAlreadyExists
        ):
            self.client.create_bucket(Bucket=self.bucket)

    def put(self, name: str, picture: bytes) -> list[str]:
        self.client.put_object(Bucket=self.bucket, Key=name, Body=picture)
        return [name]

    def fetch(self, ticket: Sequence[str]) -> bytes:
        return bytes(self.client.get_object(Bucket=self.bucket, Key=ticket[0])["Body"].read())

    def forget(self, ticket: Sequence[str]) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=ticket[0])


WAYS: Mapping[str, type[OneKey]] = {
    "one key": OneKey,
    "keys of 1 MB, read at once": Keys,
    "keys of 1 MB, read one by one": KeysOneByOne,
    "list of 1 MB, read one by one": PartsList,
    "stream": Stream,
    "HTTP from the host": HostHttp,
    "S3": S3,
}
Case = tuple[str, bool]
"""The way, and whether its Redis writes an append-only file"""


def _parts(picture: bytes) -> list[memoryview]:
    view = memoryview(picture)
    return [view[at : at + PART_BYTES] for at in range(0, len(picture), PART_BYTES)]


@dataclass
class Measured:
    """`seconds`: one for each picture. `peak_mb`: by how much Redis grew at most."""

    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0


def serve_as_host(host: str, size: int, ports: Mapping[Case, int], s3: str | None) -> None:
    """The process of a host: makes a picture for each order, until it is ended. All pictures differ."""
    noise = os.urandom(size - 8)
    ways = {case: WAYS[case[0]](_client(port), host, s3) for case, port in ports.items()}
    orders = next(iter(ways.values())).server
    for number in range(10**9):
        _, order = orders.blpop([f"orders:{host}"], timeout=0)
        way = ways[tuple(json.loads(order))]
        picture = number.to_bytes(8, "big") + noise
        began = time.monotonic_ns()  # the same clock in all processes of a machine
        digest = hashlib.sha256(picture).hexdigest()
        ticket = way.put(f"{host}-{number}", picture)
        way.server.rpush(f"done:{host}", json.dumps([began, digest, ticket]))


class FrontEnd:
    """One thread of the front end: fetches the pictures of one host."""

    def __init__(self, host: str, ports: Mapping[Case, int], s3: str | None) -> None:
        self._host = host
        self._ways = {case: WAYS[case[0]](_client(port), host, s3) for case, port in ports.items()}
        self._orders = next(iter(self._ways.values())).server

    def pictures(self, case: Case, count: int) -> list[float]:
        """The seconds of each. Raises RuntimeError if a picture is not there, or not as it was."""
        return [self._picture(case) for _ in range(count)]

    def _picture(self, case: Case) -> float:
        way = self._ways[case]
        self._orders.rpush(f"orders:{self._host}", json.dumps(case))
        done = way.server.blpop([f"done:{self._host}"], timeout=int(WAIT_S))
        if done is None:
            raise RuntimeError(f"{case[0]}: the host gave no picture within {WAIT_S:.0f} s")
        began, digest, ticket = json.loads(done[1])
        picture = way.fetch(ticket)
        if hashlib.sha256(picture).hexdigest() != digest:
            raise RuntimeError(f"{case[0]}: the picture is not the one that the host sent")
        seconds = (time.monotonic_ns() - began) / 1e9
        way.forget(ticket)
        return seconds


def measure(
    redis_server: Path, cases: Sequence[Case], size: int, at_once: int, count: int, s3: str | None
) -> dict[Case, Measured]:
    """Each case's pictures, in rounds in which the cases take turns in random order. `count`: of each case, at least."""
    measured = {case: Measured() for case in cases}
    hosts = [f"host{number}" for number in range(at_once)]
    each = -(-count // (ROUNDS * at_once))
    with contextlib.ExitStack() as running:
        servers = {case: running.enter_context(_redis(redis_server, case[1])) for case in cases}
        ports = {case: port for case, (port, _) in servers.items()}
        before = {case: peak_memory_mb(process.pid) for case, (_, process) in servers.items()}
        for host in hosts:
            running.enter_context(_host(host, size, ports, s3))
        fronts = [FrontEnd(host, ports, s3) for host in hosts]
        pool = running.enter_context(ThreadPoolExecutor(at_once))
        for case in cases:  # connections and processes are warm
            list(pool.map(lambda front, case=case: front.pictures(case, 1), fronts))
        for _ in range(ROUNDS):
            for case in random.sample(cases, len(cases)):
                for seconds in pool.map(lambda front, case=case: front.pictures(case, each), fronts):
                    measured[case].seconds += seconds
        for case, (_, process) in servers.items():
            measured[case].peak_mb = peak_memory_mb(process.pid) - before[case]
    return measured


@contextlib.contextmanager
def _host(host: str, size: int, ports: Mapping[Case, int], s3: str | None) -> Iterator[None]:
    arguments = (host, size, ports, s3)
    process = multiprocessing.get_context("spawn").Process(target=serve_as_host, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


@contextlib.contextmanager
def _redis(program: Path, has_file: bool) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A Redis server's port and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        options = {"port": str(port), "bind": "127.0.0.1", "save": "", "dir": folder}
        options |= {"appendonly": "yes" if has_file else "no", "appendfsync": "everysec"}
        command = [str(program), *(word for name, value in options.items() for word in (f"--{name}", value))]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _wait_for(port, process)
            yield port, process
        finally:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    ends_at = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < ends_at:
        with contextlib.suppress(redis.ConnectionError):
            _client(port).ping()
            return
        time.sleep(0.02)
    raise RuntimeError("the Redis server does not answer")


def _client(port: int) -> Any:
    return redis.Redis(port=port, socket_timeout=2 * WAIT_S)


def row(case: Case, size: str, at_once: int, measured: Measured) -> str:
    """A row of the table. With fewer than 20 pictures, the 95th percentile is the slowest."""
    ms = sorted(1000 * seconds for seconds in measured.seconds)
    slow = statistics.quantiles(ms, n=20)[-1] if len(ms) >= 20 else ms[-1]
    file = "AOF" if case[1] else "-"
    return (
        f"| {case[0]} | {file} | {size} | {at_once} | {statistics.median(ms):.1f} | {slow:.1f} "
        f"| {measured.peak_mb:.0f} |"
    )


def main() -> None:
    options = _options()
    ways = [way for way in WAYS if way != "S3" or options.s3]
    files = {way: (False,) if WAYS[way] in (HostHttp, S3) else (False, True) for way in ways}
    cases = [(way, has_file) for way in ways for has_file in files[way]]
    print(f"{cpu_model()}, load average {os.getloadavg()[0]:.1f}\n")
    print("| Way | Redis' file | Picture | At once | Median, ms | 95th percentile, ms | Redis grew by, MB |")
    print("|---|---|---|---|---|---|---|")
    raw: list[dict[str, Any]] = []
    with clean_ending():
        for size, size_bytes in SIZES.items():
            for at_once in AT_ONCE:
                count = QUICK_PICTURES if options.quick else LARGE_PICTURES if size == "40 MB" else PICTURES
                measured = measure(options.redis_server, cases, size_bytes, at_once, count, options.s3)
                for case in cases:
                    print(row(case, size, at_once, measured[case]), flush=True)
                    raw.append({"way": case[0], "aof": case[1], "size": size, "at_once": at_once}
                               | vars(measured[case]))  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(raw), "utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.picture_transport", description=__doc__)
    parser.add_argument("--redis-server", type=Path, required=True, metavar="PATH", help="the program")
    parser.add_argument("--s3", type=_url, metavar="URL", help="a running S3-compatible server; needs boto3")
    parser.add_argument("--quick", action="store_true", help="few pictures, to check that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the time of every picture")
    return parser.parse_args()


def _url(text: str) -> str:
    if urlsplit(text).scheme not in ("http", "https"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an HTTP URL")
    return text


if __name__ == "__main__":
    main()
