"""GET /api/events: what its clients get, what they must not get, and how they go on after they were away."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from flask import Flask

from access import Caller
from api import register_api
from api.event_hub import EventHub, Listener, parse_position
from api.responses import Links
from api.status_document import Audience
from app import Container
from arbiter import Sender
from errors import IndexUnavailable
from tests.api.test_key_permissions import Installation
from tests.conftest import MakeApp
from tests.waiting import TIMEOUT_S, wait_until

PATH = "/api/events"


@dataclass(frozen=True)
class Change:
    number: int
    kind: Any
    name: str
    owner: str = ""


class Feed:
    """A feed whose changes a test makes. It knows the last `kept` of them."""

    def __init__(self, kept: int = 100) -> None:
        self.epoch, self.kept, self.changes = "e1", kept, list[Change]()
        self.reads = 0
        self.is_broken = False

    def add(self, kind: str, name: str, owner: str = "") -> None:
        self.changes.append(Change(len(self.changes) + 1, kind, name, owner))

    def position(self) -> tuple[str, int]:
        if self.is_broken:
            raise OSError("the index cannot be read")
        return self.epoch, len(self.changes)

    def changes_after(self, epoch: str, number: int, owner: str | None) -> Sequence[Change] | None:
        self.reads += 1
        last = len(self.changes)
        if epoch != self.epoch or not last - self.kept <= number <= last:
            return None
        return [change for change in self.changes[number:] if owner in (None, change.owner)]

    def owner_of(self, caller: Caller) -> str | None:
        return None if caller.may("operate") else caller.key

    def documents(self, names: Sequence[str], links: Links) -> Mapping[str, Mapping[str, Any]]:
        gone = {change.name for change in self.changes if change.kind == "removed"}
        return {name: {"name": name, "url": f"{links.prefix}/{name}"} for name in names if name not in gone}


@dataclass(frozen=True)
class Received:
    name: str
    data: Any
    id: str


class Reader:
    """Reads a stream in a thread, as a browser does."""

    def __init__(self, response: Any) -> None:
        assert (response.status_code, response.mimetype) == (200, "text/event-stream")
        self.response, self.events, self.text = response, list[Received](), ""
        self.has_ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(ValueError):
            for chunk in self.response.iter_encoded():
                self.text += chunk.decode()
                *blocks, self.text = self.text.split("\n\n")
                for block in blocks:
                    fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
                    if "data" in fields:
                        data = json.loads(fields["data"])
                        self.events.append(Received(fields["event"], data, fields.get("id", "")))
        self.has_ended = True

    def all(self, name: str) -> list[Any]:
        return [event.data for event in tuple(self.events) if event.name == name]

    def first(self, name: str, accept: Callable[[Any], bool] = lambda data: True) -> Any:
        """The first such event, once there is one."""
        return wait_until(lambda: [data for data in self.all(name) if accept(data)])[0]


@dataclass
class Streams:
    """An application whose images are those of `feed`."""

    app: Flask
    container: Container
    feed: Feed

    def open(self, key: str = "", **headers: str) -> Reader:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return Reader(self.app.test_client().get(PATH, headers=headers))

    def stop(self) -> None:
        self.container.services.shutdown.has_begun = True


@pytest.fixture
def streams(make_app: MakeApp) -> Iterator[Streams]:
    container: Container = make_app().extensions["easel"]
    feed = Feed()
    app = Flask("easel", static_folder=None)
    app.extensions["easel"] = container
    register_api(app, replace(container.services, image_feed=feed))
    found = Streams(app, container, feed)
    yield found
    found.stop()


def test_a_failure_that_lasts_is_logged_once_a_minute_even_if_its_text_changes(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    container: Container = make_app().extensions["easel"]
    now, looks = [100.0], itertools.count()

    class Broken(Feed):
        def position(self) -> tuple[str, int]:
            raise IndexUnavailable(f"attempt {next(looks)} failed")

    hub = EventHub(replace(container.services, image_feed=Broken()), clock=lambda: now[0])
    for _ in range(10):
        assert hub.position() is None
        now[0] += 0.25
    now[0] += 60
    assert hub.position() is None
    lines = [record for record in caplog.records if record.name == "easel.events"]
    assert [line.getMessage()[-16:] for line in lines] == ["attempt 0 failed", "ttempt 10 failed"]
    assert not any(line.exc_info for line in lines)


# --- what a stream has -----------------------------------------------------------------------------


def test_a_stream_begins_with_everything_that_is_known(streams: Streams) -> None:
    reader = streams.open()
    reader.first("catalogue")
    assert [event.name for event in reader.events[:5]] == ["hello", "status", "memory", "pulls", "catalogue"]
    assert reader.all("hello") == [{"version": "0.1.0", "key": None}]
    assert isinstance(reader.all("memory")[0], list)
    assert reader.all("catalogue")[0]["error"] is None


def test_its_status_is_that_of_the_status_route(streams: Streams) -> None:
    client = streams.app.test_client()
    wait_until(lambda: client.get("/api/comfyui/status").get_json()["reachable"])
    reader = streams.open()
    status = reader.first("status", lambda status: status["reachable"] and status["problem"] is None)
    answer = client.get("/api/comfyui/status").get_json()
    assert status.keys() == answer.keys()
    different = ("probed_at", "memory", "models", "engines")
    assert all(status[name] == answer[name] for name in status if name not in different)
    # The only engine is what the other fields describe.
    assert (status["engines"], len(answer["engines"])) == ([], 1)


def test_a_status_is_sent_again_only_if_something_has_changed(streams: Streams) -> None:
    reader = streams.open()
    reader.first("status", lambda status: status["reachable"] and len(status["models"]) > 100)
    wait_until(lambda: all(model["ready"] for model in reader.all("status")[-1]["models"]))
    wait_until(lambda: reader.all("memory")[1:])
    before, samples = len(reader.all("status")), len(reader.all("memory"))
    wait_until(lambda: len(reader.all("memory")) > samples + 1)  # four seconds
    assert len(reader.all("status")) == before
    sender = Sender("r", "192.0.2.1 curl", "")
    with (
        streams.container.arbiter.listed("r1", model="sdxl-turbo", jobs=["j1"], sender=sender),
        streams.container.arbiter.lease("generation", job="j1", timeout_s=5),
    ):
        status = reader.first("status", lambda status: status["jobs"])
    assert status["jobs"][0]["client"] == "192.0.2.1 curl"


def test_samples_of_memory_follow_the_list_of_the_last_minutes_without_gap_or_repetition(
    streams: Streams,
) -> None:
    client = streams.app.test_client()
    wait_until(lambda: client.get("/api/comfyui/status").get_json()["reachable"])
    reader = streams.open()
    wait_until(lambda: len(reader.all("memory")) > 2)
    first, *others = reader.all("memory")
    times = [sample["at"] for sample in (*first, *others)]
    assert times == sorted(set(times))
    assert set(others[0]) == {"at", "vram_used_gb", "vram_ceil_gb", "ram_used_gb", "ram_ceil_gb"}
    again = streams.open()
    assert again.first("memory")[: len(first)] == first


# --- images ----------------------------------------------------------------------------------------


def test_images_that_change_are_sent_with_the_position_after_them(streams: Streams) -> None:
    streams.feed.add("added", "old.png")
    reader = streams.open()
    reader.first("status")
    for kind, name in (("added", "a.png"), ("added", "b.png"), ("changed", "old.png"), ("removed", "b.png")):
        streams.feed.add(kind, name)
        wait_until(lambda: len(reader.all("image")) == len(streams.feed.changes) - 1)
    kinds = [(event["change"], event["image"]["name"]) for event in reader.all("image")]
    assert kinds == [
        ("added", "a.png"),
        ("added", "b.png"),
        ("changed", "old.png"),
        ("removed", "b.png"),
    ]
    ids = [event.id for event in reader.events if event.name == "image"]
    assert ids == ["e1-2", "e1-3", "e1-4", "e1-5"]
    assert reader.all("image")[0]["image"]["url"] == "http://localhost/a.png"


def test_a_client_that_comes_back_gets_what_it_has_missed(streams: Streams) -> None:
    for name in ("a.png", "b.png", "c.png"):
        streams.feed.add("added", name)
    streams.feed.add("removed", "b.png")
    reader = streams.open(Last_Event_ID="e1-1")
    wait_until(lambda: len(reader.all("image")) == 2)
    assert [(event["change"], event["image"]["name"]) for event in reader.all("image")] == [
        ("added", "c.png"),
        ("removed", "b.png"),
    ]
    assert reader.all("resync") == []


@pytest.mark.parametrize("sent", ["e0-1", "e1-0", "e1-999", "nonsense", "e1--4", "-", "e1-١", "x" * 5000])
def test_a_client_whose_position_is_not_known_any_more_reads_the_gallery_anew(
    streams: Streams, sent: str
) -> None:
    streams.feed.kept = 1
    for name in ("a.png", "b.png", "c.png"):
        streams.feed.add("added", name)
    reader = streams.open(Last_Event_ID=sent.encode("utf-8").decode("latin-1"))
    reader.first("resync")
    assert reader.all("image") == []
    streams.feed.add("added", "d.png")
    assert reader.first("image")["image"]["name"] == "d.png"
    assert len(reader.all("resync")) == 1


@pytest.mark.parametrize(
    ("number", "name"), [(600, "{}.png"), (40, "{}" + "x" * 250_000)], ids=["many", "long"]
)
def test_a_client_that_has_missed_more_than_may_wait_for_it_reads_the_gallery_anew(
    streams: Streams, number: int, name: str
) -> None:
    """Otherwise its stream would end before it has got anything, whenever it comes back."""
    streams.feed.kept = 1000
    for each in range(number):
        streams.feed.add("added", name.format(each))
    reader = streams.open(Last_Event_ID="e1-0")
    reader.first("resync")
    streams.feed.add("added", "new.png")
    assert reader.first("image")["image"]["name"] == "new.png"
    assert not reader.has_ended


def test_a_new_index_makes_every_client_read_the_gallery_anew(streams: Streams) -> None:
    reader = streams.open()
    reader.first("status")
    streams.feed.epoch, streams.feed.changes = "e2", []
    reader.first("resync")
    streams.feed.add("added", "a.png")
    reader.first("image")
    assert [event.id for event in reader.events if event.name == "image"] == ["e2-1"]


def test_a_stream_goes_on_while_the_index_cannot_be_read(streams: Streams) -> None:
    streams.feed.is_broken = True
    reader = streams.open()
    reader.first("status")
    assert not any(event.id for event in reader.events)
    streams.feed.is_broken = False
    streams.feed.add("added", "a.png")
    wait_until(lambda: streams.feed.reads or reader.all("memory")[1:])
    streams.feed.add("added", "b.png")
    assert reader.first("image", lambda event: event["image"]["name"] == "b.png")


def test_streams_that_may_see_the_same_share_one_reading(streams: Streams) -> None:
    readers = [streams.open() for _ in range(10)]
    for reader in readers:
        reader.first("status")
    streams.feed.add("added", "a.png")
    for reader in readers:
        reader.first("image")
    assert streams.feed.reads == 1


# --- keys ------------------------------------------------------------------------------------------


def test_nothing_of_others_reaches_a_key(streams: Streams) -> None:
    easel = Installation(streams.app)
    for name, scopes in (("mine", ["draw"]), ("yours", ["draw", "view"]), ("owner", ["operate"])):
        easel.add(name, scopes)
    readers = {name: streams.open(easel.keys[name]) for name in ("mine", "yours", "owner")}
    arbiter = streams.container.arbiter
    with (
        arbiter.listed("r1", model="sdxl", jobs=["j1"], sender=Sender("id1", "192.0.2.1 a", "mine")),
        arbiter.listed("r2", model="sd15", jobs=["j2"], sender=Sender("id2", "192.0.2.2 b", "yours")),
        arbiter.lease("generation", job="j1", timeout_s=5),
        arbiter.lease("generation", job="j2", timeout_s=5),
    ):
        seen = {
            name: reader.first("status", lambda status: len(status["jobs"]) == 2)
            for name, reader in readers.items()
        }
    streams.feed.add("added", "of-mine.png", "mine")
    streams.feed.add("added", "of-yours.png", "yours")
    wait_until(lambda: len(readers["owner"].all("image")) == 2)
    wait_until(lambda: readers["mine"].all("image") and readers["yours"].all("image"))
    for name, other in (("mine", "yours"), ("yours", "mine")):
        jobs = {job["key"]: job for job in seen[name]["jobs"]}
        assert set(jobs) == {name, None}
        assert (jobs[None]["client"], jobs[None]["request_id"]) == (None, None)
        everything = json.dumps([event.data for event in readers[name].events])
        assert other not in everything
        assert [event["image"]["name"] for event in readers[name].all("image")] == [f"of-{name}.png"]
    assert {job["key"] for job in seen["owner"]["jobs"]} == {"mine", "yours"}
    assert readers["mine"].all("hello")[0]["key"] == {"name": "mine", "scopes": ["draw"]}
    assert readers["mine"].all("pulls") == []
    assert readers["yours"].all("pulls") == [[]]


def test_a_revoked_key_ends_its_stream_with_an_error(streams: Streams) -> None:
    easel = Installation(streams.app)
    easel.add("phone")
    easel.add("other")
    reader, other = streams.open(easel.keys["phone"]), streams.open(easel.keys["other"])
    reader.first("status")
    easel.container.gate.revoke_key("phone")
    assert reader.first("error")["error"]["code"] == "auth.key_ended"
    wait_until(lambda: reader.has_ended)
    assert not other.has_ended
    assert streams.app.test_client().get(PATH).status_code == 401


def test_a_stream_from_before_the_first_key_ends_when_there_is_one(streams: Streams) -> None:
    """It sees everything of everybody."""
    reader = streams.open()
    reader.first("status")
    easel = Installation(streams.app)
    easel.add("first")
    wait_until(lambda: reader.has_ended)
    assert streams.app.test_client().get(PATH).status_code == 401
    assert streams.open(easel.keys["first"]).first("status")


def test_a_stream_ends_when_the_rights_of_its_key_change(streams: Streams) -> None:
    easel = Installation(streams.app)
    easel.add("owner", ["operate"])
    easel.add("other", ["operate"])
    reader, other = streams.open(easel.keys["owner"]), streams.open(easel.keys["other"])
    reader.first("status")
    path = easel.container.gate.keys.path
    document = json.loads(path.read_text())
    document["keys"][0]["scopes"] = ["draw"]
    path.write_text(json.dumps(document))
    wait_until(lambda: reader.has_ended)
    assert reader.all("error") == []
    assert not other.has_ended
    again = streams.open(easel.keys["owner"])
    assert again.first("hello")["key"] == {"name": "owner", "scopes": ["draw"]}


# --- bounds ----------------------------------------------------------------------------------------


def test_more_streams_than_threads_can_be_spared_are_refused_until_one_ends(make_app: MakeApp) -> None:
    app = make_app(threads=6, max_waiting=2)
    container: Container = app.extensions["easel"]
    assert container.services.options.max_event_streams == 2
    streams = Streams(app, container, Feed())
    readers = [streams.open(), streams.open()]
    refused = app.test_client().get(PATH)
    assert refused.status_code == 503
    assert refused.get_json()["error"]["code"] == "events.too_many_streams"
    assert refused.headers["Retry-After"] == "5"
    streams.stop()
    for reader in readers:
        wait_until(lambda reader=reader: reader.has_ended)
        reader.response.close()
    streams.container.services.shutdown.has_begun = False
    assert app.test_client().get(PATH).status_code == 200
    streams.stop()


def test_a_stream_ends_at_once_when_the_server_stops(streams: Streams) -> None:
    reader = streams.open()
    reader.first("status")
    streams.stop()
    began_at = time.monotonic()
    wait_until(lambda: reader.has_ended)
    assert time.monotonic() - began_at < TIMEOUT_S / 10


def listener(position: tuple[str, int] | None = ("e", 1)) -> Listener:
    return Listener(
        Audience("", sees_all=True), sees_pulls=True, owner=None, links=Links(""), position=position
    )


def test_a_client_that_does_not_read_is_dropped_and_holds_no_memory() -> None:
    slow = listener()
    for number in range(1000):
        slow.put("image", json.dumps({"number": number}))
    assert slow.has_ended
    assert slow.take(0) == b""
    big = listener()
    for _ in range(20):
        big.put("image", "x" * 1_000_000)
    assert big.has_ended


def test_only_the_last_status_waits_for_a_slow_client() -> None:
    slow = listener()
    for number in range(2000):
        slow.put("status", json.dumps(number))
    slow.put("image", "{}")
    assert not slow.has_ended
    assert slow.take(0) == b"id: e-1\nevent: status\ndata: 1999\n\nid: e-1\nevent: image\ndata: {}\n\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("e1-5", ("e1", 5)), ("a-b-0", ("a-b", 0)), ("5", None), ("-5", None), ("e-", None), ("e-x", None), ("e-²", None)],
)  # fmt: skip
def test_positions_are_read_strictly(text: str, expected: tuple[str, int] | None) -> None:
    assert parse_position(text) == expected
