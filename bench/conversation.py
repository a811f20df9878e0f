"""What forwarding an LLM request costs: the same streams from the same small LLM server, asked directly, through Easel, and
through Easel with a lease on the GPU."""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from bench.chat_clients import TIMEOUT_S, ChatClient, Streamed, stream_at_once, stream_staggered
from bench.http import Http
from bench.llm_server import MODEL, UPLOAD_PATH, LlmServer, chat_body
from bench.load import LoadGenerator
from bench.processes import MemoryWatch, cpu_s
from bench.server import Server
from bench.summary import summarize
from bench.testbed import Testbed, gateway_route

STREAMS, TOKENS_PER_S = 32, 50.0
ONE_BY_ONE, QUICK_ONE_BY_ONE = 150, 10
LOAD_TOKENS, QUICK_LOAD_TOKENS = 250, 20
"""Of each of the streams that begin together"""
SHORT_TOKENS = 50
"""Of each of the streams that begin one after another"""
ROUNDS, QUICK_ROUNDS = 3, 1
BUSY_STREAMS, BUSY_PICTURES, BUSY_TOKENS_PER_S = 128, 32, 10.0
BUSY_TOKENS, QUICK_BUSY_TOKENS = 60, 10
HEALTH_INTERVAL_S = 0.02
LONG_TOKENS, QUICK_LONG_TOKENS = 100_000, 5_000
UPLOAD_MB, QUICK_UPLOAD_MB = 100, 5
DIRECT, GATEWAY, LEASE = "direct", "gateway", "gateway, lease"


def measure_conversation(testbed: Testbed) -> dict[str, Any]:
    """By route: seconds, tokens per second, CPU seconds, 10^6 bytes."""
    with LlmServer() as llm, _gateways(testbed, llm) as gateways:
        routes = {DIRECT: llm.url, **{name: server.url for name, server in gateways.items()}}
        quick = testbed.options.quick
        rounds = QUICK_ROUNDS if quick else ROUNDS
        first_tokens = {
            "one": _one_by_one(routes, QUICK_ONE_BY_ONE if quick else ONE_BY_ONE),
            "many": _staggered(routes, rounds),
        }
        # Not earlier: a gateway answers before all of its workers have started.
        workers = {DIRECT: [], **{name: server.workers for name, server in gateways.items()}}
        with LoadGenerator() as pictures:
            busy = {
                name: _busy(testbed, pictures, server.url, QUICK_BUSY_TOKENS if quick else BUSY_TOKENS)
                for name, server in gateways.items()
            }
        return {
            **first_tokens,
            "busy": busy,
            "load": _load(routes, workers, QUICK_LOAD_TOKENS if quick else LOAD_TOKENS, rounds),
            "long": {
                name: _long_stream(url, workers[name], QUICK_LONG_TOKENS if quick else LONG_TOKENS)
                for name, url in routes.items()
            },
            "upload": {
                name: _upload(url, workers[name], QUICK_UPLOAD_MB if quick else UPLOAD_MB)
                for name, url in routes.items()
            },
        }


@contextlib.contextmanager
def _gateways(testbed: Testbed, llm: LlmServer) -> Iterator[Mapping[str, Server]]:
    """One for each route but the direct one."""
    upstream = {"url": llm.url, "paths": {"transcriptions": True}}
    plain = [{"name": "bench", **upstream}]
    stack = [{"name": "bench", "driver": "llama-server", "url": llm.url, "upstream": upstream}]
    with (
        testbed.another_server(settings={"EASEL_LLM_UPSTREAMS": json.dumps(plain)}) as without,
        testbed.another_server(settings={"EASEL_LLM_STACKS": json.dumps(stack)}) as sharing,
    ):
        yield {GATEWAY: without, LEASE: sharing}


@contextlib.contextmanager
def _clients(url: str, count: int = STREAMS) -> Iterator[list[ChatClient]]:
    """Open for one measurement only: a server closes a connection that sends nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(ChatClient(url))) for _ in range(count)]


def _rotated(names: list[str], rounds: int) -> Iterator[str]:
    """A B C, B C A, …, so that other load on the machine affects all of them equally."""
    for _ in range(rounds):
        yield from names
        names.append(names.pop(0))


def _one_by_one(routes: Mapping[str, str], rounds: int) -> dict[str, Any]:
    """The time to the first token of one stream after another."""
    body = chat_body(3, 0)
    times: dict[str, list[float]] = {name: [] for name in routes}
    with contextlib.ExitStack() as stack:
        clients = {
            name: stack.enter_context(contextlib.closing(ChatClient(url))) for name, url in routes.items()
        }
        for client in clients.values():
            client.stream(body)
        for name in _rotated(list(routes), rounds):
            times[name].append(clients[name].stream(body).first_token_s)
    return _added(times)


def _staggered(routes: Mapping[str, str], rounds: int) -> dict[str, Any]:
    """The time to the first token while as many streams run as there are clients."""
    body, stream_s = chat_body(SHORT_TOKENS, TOKENS_PER_S), SHORT_TOKENS / TOKENS_PER_S
    times: dict[str, list[float]] = {name: [] for name in routes}
    for name in _rotated(list(routes), rounds):
        with _clients(routes[name]) as clients:
            streams = stream_staggered(clients, body, stream_s=stream_s, rounds=4)
        # Those of the first round begin before all of the others run.
        streams.sort(key=lambda stream: stream.sent_at)
        times[name] += [stream.first_token_s for stream in streams[STREAMS:]]
    return _added(times)


def _added(times: Mapping[str, list[float]]) -> dict[str, Any]:
    summaries = {name: summarize(values) for name, values in times.items()}
    for summary in summaries.values():
        summary["added_s"] = summary["median"] - summaries[DIRECT]["median"]
    return summaries


def _load(
    routes: Mapping[str, str], workers: Mapping[str, list[int]], tokens: int, rounds: int
) -> dict[str, Any]:
    """Streams that begin at the same moment: tokens per second, the time to their first tokens, CPU of the gateway."""
    body = chat_body(tokens, TOKENS_PER_S)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in routes}
    for name in _rotated(list(routes), rounds):
        used_before = sum(map(cpu_s, workers[name]))
        with _clients(routes[name]) as clients:
            streams = stream_at_once(clients, body)
        used_s = sum(map(cpu_s, workers[name])) - used_before
        runs[name].append(
            {
                "tokens_per_s": sum(stream.tokens for stream in streams) / _duration_s(streams),
                "first_token_s": statistics.median(stream.first_token_s for stream in streams),
                "cpu_s_per_1000": used_s / (tokens * STREAMS) * 1000,
            }
        )
    return {
        name: {
            **{key: statistics.median(run[key] for run in each) for key in each[0]},
            "ratio": statistics.median(
                run["tokens_per_s"] / direct["tokens_per_s"]
                for run, direct in zip(each, runs[DIRECT], strict=True)
            ),
            "runs": each,
        }
        for name, each in runs.items()
    }


def _busy(testbed: Testbed, pictures: LoadGenerator, url: str, tokens: int) -> dict[str, Any]:
    """The time of a health check while 128 streams are open and 32 clients draw. With a lease, the pictures wait for the end
    of the streams."""
    size = min(testbed.sizes)
    route = gateway_route(url, testbed.engine, size)
    seeds = [next(testbed.seeds) for _ in range(BUSY_PICTURES)]
    with (
        _clients(url, BUSY_STREAMS) as clients,
        ThreadPoolExecutor(2) as pool,
        contextlib.closing(Http(url, TIMEOUT_S)) as http_client,
    ):
        streams = pool.submit(stream_at_once, clients, chat_body(tokens, BUSY_TOKENS_PER_S))
        # Pictures that came first would have the GPU for the minimum stay.
        while not (streams.done() or all(client.has_begun for client in clients)):
            time.sleep(HEALTH_INTERVAL_S)
        drawn = pool.submit(pictures.run, route, BUSY_PICTURES, seeds)
        times = []
        while not (streams.done() and drawn.done()):
            started_at = time.perf_counter()
            http_client.call("GET", "/health")
            times.append(time.perf_counter() - started_at)
            time.sleep(HEALTH_INTERVAL_S)
        if [stream.tokens for stream in streams.result()] != [tokens] * BUSY_STREAMS:
            raise RuntimeError("a stream was cut off")
        if len(drawn.result().latencies_s) != BUSY_PICTURES:
            raise RuntimeError("a picture was not drawn")
    return {**summarize(times), "max": max(times)}


def _duration_s(streams: list[Streamed]) -> float:
    return max(stream.ended_at for stream in streams) - min(stream.sent_at for stream in streams)


def _long_stream(url: str, workers: list[int], tokens: int) -> dict[str, Any]:
    """A stream as fast as it can be read, and by how much the memory of the gateway's workers grew at most, and in the
    end."""
    used_before = sum(map(cpu_s, workers))
    with contextlib.closing(ChatClient(url)) as client, MemoryWatch(workers) as memory:
        streamed = client.stream(chat_body(tokens, 0))
    if streamed.tokens != tokens:
        raise RuntimeError(f"{streamed.tokens} of {tokens} tokens came")
    seconds = streamed.ended_at - streamed.sent_at
    used_s = sum(map(cpu_s, workers)) - used_before
    return {"tokens": tokens, "seconds": seconds, "cpu_s": used_s, **memory.grown_mb()}


def _upload(url: str, workers: list[int], megabytes: int) -> dict[str, Any]:
    """One audio file; see `_long_stream`."""
    used_before = sum(map(cpu_s, workers))
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    begin = (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        b"Content-Type: audio/wav\r\n\r\n"
    )
    end = (
        b'\r\n--B\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + MODEL.encode() + b"\r\n--B--\r\n"
    )
    block, length = bytes(1_000_000), len(begin) + megabytes * 1_000_000 + len(end)
    with MemoryWatch(workers) as memory, contextlib.closing(connection):
        started = time.perf_counter()
        connection.request(
            "POST",
            UPLOAD_PATH,
            iter([begin, *[block] * megabytes, end]),
            {"Content-Type": "multipart/form-data; boundary=B", "Content-Length": str(length)},
        )
        response = connection.getresponse()
        content = response.read()
        seconds = time.perf_counter() - started
    if content != json.dumps({"text": f"{length} bytes"}).encode():
        raise RuntimeError(f"the upload gave {response.status}: {content[:500]!r}")
    used_s = sum(map(cpu_s, workers)) - used_before
    return {"megabytes": megabytes, "seconds": seconds, "cpu_s": used_s, **memory.grown_mb()}
