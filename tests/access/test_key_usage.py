"""What keys use, and their limits: exact for many processes, over restarts, and when the clock is set."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from access import Gate, Limits, Use
from access.clock import Now, read_clock
from access.usage import Record, UsageFiles
from errors import EaselError, KeyLimit, KeyLimitReached, StateUnwritable
from tests.conftest import ROOT


class Clock:
    """A clock that a test sets. `set_back` moves only the wall clock."""

    def __init__(self) -> None:
        self.now = Now(wall=1_000_000_000.0, steady=5000.0, boot=1)

    def __call__(self) -> Now:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now = Now(self.now.wall + seconds, self.now.steady + seconds, self.now.boot)

    def set_wall(self, seconds: float) -> None:
        self.now = Now(self.now.wall + seconds, self.now.steady, self.now.boot)

    def restart(self, *, wall: float = 0.0) -> None:
        self.now = Now(self.now.wall + wall, 10.0, self.now.boot + 1)


class World:
    def __init__(self, folder: Path, **limits: Any) -> None:
        self.folder, self.clock = folder, Clock()
        self.gate = Gate(folder, clock=self.clock)
        self.key, text = self.gate.add_key("phone", ["draw"], limits)
        self.caller = self.gate.caller_of(text.encode())

    def admit(self) -> Use:
        return self.gate.admit(self.caller)

    def report(self) -> dict[str, Any]:
        return self.gate.report(self.gate.keys.current().by_id[self.key.id])

    def used(self, name: str) -> int:
        windows = {window["name"]: window["used"] for window in self.report()["usage"]["windows"]}
        return int(windows[name])


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tmp_path: Path) -> MakeWorld:
    return lambda **limits: World(tmp_path, **limits)


def refusal(call: Callable[[], object]) -> KeyLimitReached:
    with pytest.raises(KeyLimitReached) as caught:
        call()
    return caught.value


def test_a_window_begins_with_its_first_request_and_lasts_a_minute(make_world: MakeWorld) -> None:
    world = make_world(requests_per_minute=2)
    world.admit().close()
    world.clock.pass_by(50)
    world.admit().close()
    error = refusal(world.admit)
    assert {name: error.details[name] for name in ("name", "limit", "used", "reset", "retry_after_s")} == {
        "name": "requests_per_minute",
        "limit": 2,
        "used": 2,
        "reset": 10,
        "retry_after_s": 10,
    }
    world.clock.pass_by(9.9)
    refusal(world.admit)
    world.clock.pass_by(0.1)
    world.admit().close()
    assert world.report()["usage"]["total"] == {"requests": 3, "pictures": 0, "refused": 2, "gpu_s": 0.0}


def test_the_limit_of_a_day_counts_beside_that_of_a_minute(make_world: MakeWorld) -> None:
    world = make_world(requests_per_minute=2, requests_per_day=3)
    for _ in range(2):
        world.admit()
    assert refusal(world.admit).details["name"] == "requests_per_minute"
    world.clock.pass_by(60)
    world.admit()
    error = refusal(world.admit)
    assert (error.details["name"], error.details["reset"]) == ("requests_per_day", 86_400 - 60)
    assert world.used("requests_per_minute") == 1  # a refused request counts for no window


def test_pictures_that_are_not_drawn_are_not_counted(make_world: MakeWorld) -> None:
    world = make_world(pictures_per_minute=4)
    use = world.admit()
    drawn = use.take_pictures(3)
    assert refusal(lambda: world.admit().take_pictures(2)).details["used"] == 3
    drawn.begin()
    drawn.end(drawn=1, gpu_s=2.5)
    use.close()
    assert world.used("pictures_per_minute") == 1
    assert world.report()["usage"]["today"] == {"requests": 2, "pictures": 1, "refused": 1, "gpu_s": 2.5}


def test_pictures_of_a_request_that_fails_before_it_is_drawn_are_given_back(make_world: MakeWorld) -> None:
    world = make_world(pictures_per_minute=4)
    use = world.admit()
    use.take_pictures(4)
    use.close()
    use.close()
    assert (world.used("pictures_per_minute"), world.report()["usage"]["total"]["pictures"]) == (0, 0)


def test_pictures_are_given_back_only_to_the_window_that_they_were_taken_from(make_world: MakeWorld) -> None:
    world = make_world(pictures_per_minute=4)
    slow = world.admit()
    slow.take_pictures(4)
    world.clock.pass_by(61)
    world.admit().take_pictures(4)
    slow.close()
    assert world.used("pictures_per_minute") == 4


def test_pictures_are_counted_once_if_the_response_is_closed_before_their_drawing_begins(
    make_world: MakeWorld,
) -> None:
    world = make_world(pictures_per_minute=4)
    for drawn in (0, 2):
        use = world.admit()
        pictures = use.take_pictures(2)
        use.close()
        pictures.begin()
        pictures.end(drawn=drawn, gpu_s=0)
    assert world.used("pictures_per_minute") == world.report()["usage"]["total"]["pictures"] == 2


def test_more_pictures_than_the_limit_allows_at_all_are_no_matter_of_waiting(make_world: MakeWorld) -> None:
    world = make_world(pictures_per_minute=4, pictures_per_day=3)
    with pytest.raises(KeyLimit) as caught:
        world.admit().take_pictures(4)
    assert (caught.value.param, caught.value.details) == ("n", {"limit": 3})
    assert world.used("pictures_per_day") == 0


def test_a_clock_that_is_set_locks_nobody_out_and_gives_no_second_allowance(make_world: MakeWorld) -> None:
    world = make_world(requests_per_minute=1)
    world.admit()
    for change in (-86_400 * 365, 86_400 * 365 * 2, -3600):
        world.clock.set_wall(change)
        refusal(world.admit)
    world.clock.pass_by(60)
    world.admit()


@pytest.mark.parametrize(("wall", "is_open"), [(61, True), (30, False), (-100_000, False)])
def test_a_window_goes_on_when_the_machine_restarts(
    make_world: MakeWorld, wall: float, is_open: bool
) -> None:
    world = make_world(requests_per_minute=1)
    world.admit()
    world.clock.restart(wall=wall)
    if not is_open:
        refusal(world.admit)
        world.clock.pass_by(60)
    world.admit()


def test_without_a_steady_clock_nobody_is_locked_out_for_longer_than_a_window(tmp_path: Path) -> None:
    record = Record()
    limits = Limits(requests_per_minute=1)
    record.move_to(Now(1000.0, 1000.0, 0))
    assert record.take(limits, Now(1000.0, 1000.0, 0), 1, "requests_per_minute") is None
    for seconds, is_open in ((500.0, False), (559.0, False), (560.0, True)):
        now = Now(seconds, seconds, 0)
        record.move_to(now)
        assert (record.take(limits, now, 1, "requests_per_minute") is None) == is_open


def test_use_survives_a_restart_of_the_server(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world(requests_per_day=1)
    world.admit().close()
    again = Gate(tmp_path, clock=world.clock)
    with pytest.raises(KeyLimitReached):
        again.admit(world.caller)


def test_what_was_used_today_begins_anew_with_the_day_in_utc(make_world: MakeWorld) -> None:
    world = make_world()
    world.admit()
    world.clock.pass_by(86_400)
    usage = world.report()["usage"]
    assert (usage["today"]["requests"], usage["total"]["requests"]) == (0, 1)


def test_as_many_requests_as_allowed_run_at_once(make_world: MakeWorld) -> None:
    world = make_world(concurrent=2)
    first, second = world.admit(), world.admit()
    error = refusal(world.admit)
    assert {name: error.details[name] for name in ("name", "limit", "used", "reset")} == {
        "name": "concurrent",
        "limit": 2,
        "used": 2,
        "reset": None,
    }
    first.close()
    third = world.admit()
    refusal(world.admit)
    second.close()
    third.close()


def test_a_place_is_taken_until_the_pictures_have_ended_too(make_world: MakeWorld) -> None:
    world = make_world(concurrent=1)
    use = world.admit()
    pictures = use.take_pictures(1)
    pictures.begin()
    use.close()  # the client has gone
    refusal(world.admit)
    pictures.end(drawn=0, gpu_s=0)
    world.admit().close()


def test_a_limit_that_was_lowered_counts_the_requests_that_still_run(make_world: MakeWorld) -> None:
    world = make_world()
    places = world.gate._places
    before = [places.take("key", 3) for _ in range(3)]
    assert all(before)
    low, middle, high = before
    assert low is not None
    assert middle is not None
    assert high is not None
    low.leave()
    middle.leave()
    assert places.take("key", 1) is None
    high.leave()
    assert places.take("key", 1) is not None


_COUNT = """
import sys
from pathlib import Path
from access import Gate
from errors import KeyLimitReached
gate = Gate(Path(sys.argv[1]))
caller = gate.caller_of(sys.argv[2].encode())
print("ready", flush=True)
sys.stdin.readline()
count = 0
for _ in range(400):
    try:
        use = gate.admit(caller)
    except KeyLimitReached:
        continue
    count += 1
    use.close()
print(count, flush=True)
"""


def test_processes_and_threads_together_are_allowed_exactly_the_limit(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    _, text = gate.add_key("phone", ["draw"], {"requests_per_day": 500})
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _COUNT, str(tmp_path), text],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    caller, allowed = gate.caller_of(text.encode()), []

    def admit() -> None:
        for _ in range(100):
            try:
                gate.admit(caller).close()
            except KeyLimitReached:
                continue
            allowed.append(1)

    threads = [threading.Thread(target=admit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = [int(process.communicate(timeout=180)[0]) for process in processes]
    assert sum(counts) + len(allowed) == 500
    total = gate.reports()[0]["usage"]["total"]
    assert (total["requests"], total["refused"]) == (500, 700)


_HOLD = """
import sys, time
from pathlib import Path
from access import Gate
gate = Gate(Path(sys.argv[1]))
uses = [gate.admit(gate.caller_of(sys.argv[2].encode())) for _ in range(2)]
print("held", flush=True)
time.sleep(60)
"""


def test_the_places_of_a_killed_process_are_free_at_once_and_its_use_is_kept(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    _, text = gate.add_key("phone", ["draw"], {"concurrent": 2, "requests_per_day": 10})
    caller = gate.caller_of(text.encode())
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path), text], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    refusal(lambda: gate.admit(caller))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for _ in range(2):
        gate.admit(caller)
    assert gate.reports()[0]["usage"]["windows"][0]["used"] == 4


@pytest.mark.parametrize("content", [b"nonsense", b"x" * 196, b"x" * 10_000])
def test_a_damaged_record_is_kept_aside_and_begins_anew(make_world: MakeWorld, content: bytes) -> None:
    world = make_world(requests_per_minute=5)
    file = world.folder / "keys" / f"{world.key.id}.use"
    file.write_bytes(content)
    assert world.used("requests_per_minute") == 0
    world.admit()
    assert world.used("requests_per_minute") == 1
    assert [path.read_bytes() for path in file.parent.glob("*.corrupt")] == [content[:197]]


def test_a_key_with_limits_is_refused_where_its_use_cannot_be_counted_and_one_without_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(tmp_path)
    _, limited = gate.keys.add("limited", ["draw"], Limits(requests_per_day=5))
    _, free = gate.keys.add("free", ["draw"])
    for key in gate.keys.current().keys:
        (tmp_path / "keys" / f"{key.id}.use").mkdir(parents=True)  # nothing can be written there
    with pytest.raises(EaselError) as caught:
        gate.admit(gate.caller_of(limited.encode()))
    assert isinstance(caught.value, StateUnwritable)
    gate.admit(gate.caller_of(free.encode())).close()
    gate.admit(gate.caller_of(free.encode())).take_pictures(2)
    assert len([record for record in caplog.records if "cannot be counted" in record.message]) == 1


def test_a_holder_that_does_not_go_on_blocks_nobody_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("access.usage._LOCK_TIMEOUT_S", 0.05)
    files = UsageFiles(tmp_path)
    with files.changing("key"), pytest.raises(TimeoutError), files.changing("key"):
        pass


def test_the_steady_clock_is_the_same_in_all_processes() -> None:
    here = read_clock()
    program = "from access.clock import read_clock; now = read_clock(); print(now.boot, now.steady)"
    boot, steady = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(boot) == here.boot
    assert here.steady < float(steady) < here.steady + 60


def test_whether_several_keys_are_in_use(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    assert not gate.has_several_keys()
    gate.keys.add("first", ("draw",), Limits())
    assert not gate.has_several_keys()
    gate.keys.add("second", ("draw",), Limits())
    assert gate.has_several_keys()
    gate.keys.revoke("first")
    assert not gate.has_several_keys()
    assert Gate(tmp_path, ("of the settings",)).has_several_keys()
