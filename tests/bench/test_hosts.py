"""The benches between hosts notice what they are made to notice: lost, doubled and mixed pictures, and late answers."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import itertools
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.hosts import throughput
from bench.hosts.__main__ import argument_parser
from bench.hosts.clients import Clients, pause_s, pixels_digest, read_answer
from bench.hosts.faults import FaultOptions, FaultResult, report
from bench.hosts.forged import celery_message, flip
from bench.hosts.kills import MUST_BE_NOTICED, Kill, Kind, schedule, summaries
from bench.hosts.ledger import Answer, Job, Ledger, Verdict
from bench.hosts.programs import CATALOGUE, MODELS, Program, RedisServer, redis_binary
from bench.hosts.proxy import OneWayProxy
from bench.hosts.tables import table, target
from bench.testbed import read_catalogue
from tests.processes import free_port, is_alive
from tests.waiting import wait_until


def job(index: int) -> Job:
    return Job(index, 1000 + index, MODELS[0], f"picture {index}")


def answer(name: str, digest: str, began_at: float = 0, ended_at: float = 1, **more: Any) -> Answer:
    facts = {"prompt_ids": frozenset[str](), "is_redrawn": False, **more}
    return Answer(name, digest, began_at=began_at, ended_at=ended_at, **facts)


def png(colour: int, **options: Any) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(encoded, "PNG", **options)
    return encoded.getvalue()


def document(colour: int, **about: Any) -> dict[str, Any]:
    return {"data": [{"b64_json": base64.b64encode(png(colour)).decode()}], "_hal0": about}


# --- what became of the requests ---


def ledger_with_two_answers() -> Ledger:
    ledger = Ledger()
    for index in range(2):
        ledger.add_job(job(index))
        ledger.add_answer(job(index), answer(f"bench-{index}-1", f"digest {index}"))
    return ledger


STORED = {"bench-0-1": 1, "bench-1-1": 1}
EXPECTED = {0: "digest 0", 1: "digest 1"}


def test_a_run_in_which_every_request_got_its_picture_is_clean():
    assert ledger_with_two_answers().verdict(STORED, EXPECTED) == Verdict([], [], [], [])


def test_a_request_without_an_answer_is_lost_and_the_reason_is_kept():
    ledger = ledger_with_two_answers()
    ledger.add_job(job(2))
    ledger.add_job(job(3))
    ledger.give_up(job(3), "after 2 attempts: 400 request.invalid")
    verdict = ledger.verdict(STORED, EXPECTED)
    assert verdict.lost == ["job 2: no answer", "job 3: after 2 attempts: 400 request.invalid"]
    assert not verdict.is_clean


def test_two_stored_pictures_of_one_request_are_two_answers():
    verdict = ledger_with_two_answers().verdict({**STORED, "bench-0-1": 2}, EXPECTED)
    assert verdict.twice == ["request bench-0-1: 2 stored pictures"]
    assert not verdict.is_clean


def test_an_answer_that_is_in_no_store_is_named():
    verdict = ledger_with_two_answers().verdict({"bench-0-1": 1}, EXPECTED)
    assert verdict.not_stored == ["bench-1-1"]
    assert not verdict.is_clean


def test_an_answer_whose_record_was_made_again_from_its_file_is_found_by_its_seed():
    ledger = ledger_with_two_answers()
    seed = job(1).seed
    assert ledger.stored_without_name({"bench-0-1": 1}, [seed, None]) == {"bench-1-1": 1}
    assert ledger.stored_without_name({"bench-0-1": 1}, [job(0).seed, None]) == {}
    assert ledger.stored_without_name(STORED, [seed]) == {}


@pytest.mark.parametrize("expected", [{0: "digest 1", 1: "digest 1"}, {1: "digest 1"}])
def test_another_jobs_pixels_are_mixed_and_so_is_what_was_not_compared(expected):
    verdict = ledger_with_two_answers().verdict(STORED, expected)
    assert len(verdict.mixed) == 1
    assert verdict.mixed[0].startswith("job 0: ")
    assert not verdict.is_clean


def test_pixels_are_compared_and_not_files():
    assert png(1) != png(1, compress_level=0)
    assert pixels_digest(png(1)) == pixels_digest(png(1, compress_level=0))
    assert pixels_digest(png(1)) != pixels_digest(png(2))


def test_an_answer_knows_every_job_that_drew_it():
    redrawn = [{"prompt_id": "old", "failed_engine": "a", "engine": "b"}]
    read = read_answer(
        document(1, prompt_id="new", images=[{"prompt_id": "new"}], redrawn=redrawn), "r", 1, 2
    )
    assert read.prompt_ids == {"old", "new"}
    assert read.is_redrawn
    assert not read_answer(document(1, prompt_id="new"), "r", 1, 2).is_redrawn


@pytest.mark.parametrize("data", [[], [{"b64_json": ""}] * 2])
def test_an_answer_without_exactly_one_picture_is_none(data):
    with pytest.raises(ValueError):
        read_answer({"data": data, "_hal0": {}}, "r", 1, 2)


# --- clients that try again ---


@contextlib.contextmanager
def scripted(script: Iterator[tuple[int, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a server that answers as the script says, status 0 closing the connection; and the bodies it was sent."""
    received: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, content = next(script)
            if not status:
                self.close_connection = True
                return
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


def run_one_job(script: list[tuple[int, Any]]) -> tuple[Ledger, list[dict[str, Any]]]:
    ledger = Ledger()
    with scripted(iter(script)) as (url, received):
        clients = Clients([url], map(job, itertools.count()), ledger, lambda: bool(ledger.jobs))
        for thread in clients.run(1):
            thread.join()
    return ledger, received


def test_a_client_sends_the_same_request_again_until_there_is_a_picture():
    failures = [
        (0, None),
        (503, {"error": {"code": "engine.unreachable"}}),
        (429, {"error": {"code": "full"}}),
    ]
    ledger, received = run_one_job([*failures, (200, document(1))])
    assert ledger.retries == {"connection lost": 1, "503 engine.unreachable": 1, "429 full": 1}
    assert ledger.answers[0].request_id == "bench-0-4"
    assert len(received) == 4
    assert all(body == received[0] for body in received)
    assert received[0]["seed"] == 1000
    assert ledger.given_up == {}


@pytest.mark.parametrize(
    ("status", "content", "reason"),
    [
        (422, {"error": {"code": "size.invalid"}}, "after 1 attempts: 422 size.invalid"),
        (200, {"data": [], "_hal0": {}}, "ValueError"),
    ],
)
def test_what_no_retry_can_mend_is_given_up(status, content, reason):
    ledger, _ = run_one_job([(status, content)])
    assert ledger.answers == {}
    assert reason in ledger.given_up[0]


@pytest.mark.parametrize(
    ("header", "pause"), [(None, 0.2), ("0", 0.1), ("1", 1.0), ("30", 1.0), ("Wed, 21 Oct", 0.2)]
)
def test_a_client_waits_as_long_as_it_is_asked_to_but_at_most_a_second(header, pause):
    assert pause_s(header) == pause


# --- kills ---


def test_each_kind_is_killed_in_turn():
    turns = list(schedule(list(Kind), 3))
    assert Counter(kind for kind, _ in turns) == dict.fromkeys(Kind, 3)
    assert [kind for kind, _ in turns[: len(Kind)]] == list(Kind)
    assert [turn for _, turn in turns] == sorted(turn for _, turn in turns)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(("noticed_s", "is_late"), [(None, True), (4.9, False), (5.1, True)])
def test_only_a_hosts_processes_must_be_noticed_within_five_seconds(kind, noticed_s, is_late):
    kill = Kill(kind, "host1", 100.0, noticed_s=noticed_s)
    assert kill.is_late is (is_late and kind in MUST_BE_NOTICED)


def test_the_earliest_sign_after_the_kill_counts():
    kill = Kill(Kind.HOST, "host1", 100.0)
    kill.see("seen before it happened", 99.0)
    assert kill.noticed_s is None
    kill.see("second", 103.0)
    kill.see("first", 102.0)
    assert (kill.noticed_s, kill.sign) == (2.0, "first")


def test_a_killed_job_is_found_among_the_answers():
    kill = Kill(Kind.HOST, "host1", 100.0, frozenset({"p1", "p2"}))
    others = [
        answer("other", "d", 99, 101, prompt_ids=frozenset({"p3"}), is_redrawn=True),
        answer("before", "d", 90, 99, prompt_ids=frozenset({"p1"}), is_redrawn=True),
    ]
    kill.follow(others)
    assert (kill.noticed_s, kill.answered_s) == (None, None)
    kill.follow([*others, answer("as if nothing was", "d", 99, 103, prompt_ids=frozenset({"p2"}))])
    assert (kill.noticed_s, kill.answered_s) == (None, 3.0)
    kill.follow([answer("again", "d", 99, 104, prompt_ids=frozenset({"p1", "new"}), is_redrawn=True)])
    assert (kill.noticed_s, kill.sign, kill.answered_s) == (4.0, "job drawn again", 4.0)


def test_the_table_has_a_row_for_each_kind_with_the_late_ones():
    kills = [
        Kill(Kind.HOST, "host1", 1.0, frozenset({"p"}), noticed_s=1.0, answered_s=2.0, recovered_s=3.0),
        Kill(Kind.HOST, "host2", 2.0, noticed_s=7.0),
        Kill(Kind.REDIS, "redis", 3.0),
    ]
    rows = {each.kind: each.row() for each in summaries(kills)}
    assert rows[Kind.HOST] == ["host", "2", "1", "4.0 / 7.0 s", "2.0 / 2.0 s", "3.0 / 3.0 s", "1"]
    assert rows[Kind.REDIS] == ["redis-server", "1", "0", "-", "-", "-", ""]
    assert set(rows) == set(Kind)


@pytest.mark.parametrize(
    ("verdict", "kills", "failure", "is_good"),
    [
        (Verdict([], [], [], []), [], "", True),
        (Verdict(["job 1"], [], [], []), [], "", False),
        (Verdict([], [], [], []), [Kill(Kind.CHILD, "host1", 1.0)], "", False),
        (Verdict([], [], [], []), [], "host1 did not come back", False),
    ],
)
def test_a_fault_run_is_good_only_if_every_target_is_met(verdict, kills, failure, is_good):
    result = FaultResult(ledger_with_two_answers(), kills, verdict, 1.0, failure)
    assert result.is_good is is_good
    text = report(result, FaultOptions(jobs=2, hosts=4, fronts=2, kills=1))
    assert ("NOT MET" in text or "ended early" in text) is not is_good


# --- throughput, tables ---


@pytest.mark.parametrize(
    ("busy", "efficiency", "limit"),
    [(0.99, 0.5, "the CPU (engines: 75%"), (0.3, 0.98, "the engines"), (0.3, 0.6, "waiting")],
)
def test_the_limit_is_the_cpu_the_engines_or_something_that_waits(busy, efficiency, limit):
    costs = {"engines": 0.03, "front end": 0.01}
    entry = {"busy": busy, "efficiency": efficiency, "cpu_s_per_picture": costs}
    assert throughput.limit_of(entry).startswith(limit)


def test_a_table_is_even_and_a_missed_target_is_loud():
    assert table(["a", "bb"], [["ccc", "d"]]) == "| a   | bb |\n| --- | -- |\n| ccc | d  |"
    assert target("lost", "1", "0", is_met=False).endswith("NOT MET")


# --- forged messages ---


def test_a_forged_message_looks_like_one_of_celery():
    message = json.loads(celery_message("easel.draw", ["id"]))
    assert json.loads(base64.b64decode(message["body"]))[0] == ["id"]
    assert message["headers"]["task"] == "easel.draw"


@pytest.mark.parametrize("content", [b'{"seed": 7777777}', b'{"a": "zzzzz"}', b"{}", b"333", b"q"])
def test_a_changed_message_is_another_one_of_the_same_kind(content):
    assert flip(content) != content
    with contextlib.suppress(json.JSONDecodeError):
        before = json.loads(content)
        assert type(json.loads(flip(content))) is type(before)


# --- programs ---


def test_the_catalogue_of_the_benches_is_valid_and_its_models_draw():
    read = read_catalogue(CATALOGUE)
    assert set(MODELS) <= set(read.models)


def test_a_stopped_program_leaves_no_process_of_any_of_its_lives(tmp_path: Path):
    program = Program("sleepers", ["sh", "-c", "sleep 1000 & echo $!; wait"], {}, tmp_path / "log")

    def sleepers() -> list[int]:
        return [int(line) for line in program.log.read_text().split()]

    with program:
        wait_until(lambda: len(sleepers()) == 1)
        program.kill()
        program.start()
        wait_until(lambda: len(sleepers()) == 2)
        assert all(map(is_alive, sleepers()))  # what a killed program leaves goes on, as on a real host
    assert not program.alive()
    wait_until(lambda: not any(map(is_alive, sleepers())))


def test_the_owners_settings_do_not_reach_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EASEL_API_KEYS", "a key of the owner")
    program = Program("env", ["env"], {"EASEL_PORT": "1"}, tmp_path / "log")
    with program:
        wait_until(lambda: not program.alive())
    found = [line for line in program.log.read_text().splitlines() if line.startswith("EASEL_")]
    assert found == ["EASEL_PORT=1"]


def test_a_killed_redis_knows_what_it_knew(tmp_path: Path):
    def call(command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
            sock.sendall(command + b"\r\n")
            return sock.recv(100)

    with RedisServer(redis_binary(None), free_port(), tmp_path / "redis") as server:
        server.wait_ready()
        assert call(b"SET name value") == b"+OK\r\n"
        server.kill()
        server.start()
        server.wait_ready()
        assert call(b"GET name") == b"$5\r\nvalue\r\n"


@pytest.fixture
def echo() -> Iterator[tuple[int, list[bytes]]]:
    """The port of a server that sends back what it gets, and what it got."""
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listening.accept()
                with connection:
                    while data := connection.recv(100):
                        got.append(data)
                        connection.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1], got


@pytest.mark.parametrize("reaches_target", [False, True])
def test_a_one_way_network_drops_one_direction_and_heals(echo, reaches_target):
    port, got = echo
    with OneWayProxy(0, port) as proxy, socket.create_connection(("127.0.0.1", proxy.port), 10) as client:
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        (proxy.drop_to_client if reaches_target else proxy.drop_to_target)()
        client.sendall(b"two")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(100)
        assert got == ([b"one", b"two"] if reaches_target else [b"one"])
        proxy.heal()
        client.settimeout(10)
        assert client.recv(100) == b"two"


def test_a_proxy_that_is_closed_while_it_drops_ends_its_connections(echo):
    port, _ = echo
    with OneWayProxy(0, port) as proxy:
        client = socket.create_connection(("127.0.0.1", proxy.port), 10)
        proxy.drop_to_client()
        client.sendall(b"one")
        time.sleep(0.05)
    with client, contextlib.suppress(ConnectionResetError):
        assert client.recv(100) == b""


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "unknown",
        "faults --jobs 0",
        "faults --kind nobody",
        "bad --only nothing",
        "--json /no/such/f latency",
    ],
)
def test_wrong_arguments_are_refused(arguments: str):
    with pytest.raises(SystemExit) as caught:
        argument_parser().parse_args(arguments.split())
    assert caught.value.code not in (None, 0)
