"""What lists and searches of images may cost: each one, and all of one caller."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from api import gallery
from api.list_budget import ListBudget
from errors import ListLimitReached, SearchTimedOut
from image_store import ImageFacts, ImageFilter, ImageIndex, ImageStore
from tests.api.test_key_permissions import Installation
from tests.conftest import MakeApp

SHORT_WORDS = " ".join("".join(pair) for pair in itertools.islice(itertools.product("abcdefg", repeat=2), 32))


class World:
    """A clock, and a processor that each list uses for `cost_s`."""

    def __init__(self) -> None:
        self.now, self.used = 100.0, 0.0
        self.budget = ListBudget(burst_s=5, share=0.25, clock=lambda: self.now, used=lambda: self.used)

    def list(self, owner: str, cost_s: float) -> None:
        with self.budget.spending(owner):
            self.used += cost_s

    def refused_for(self, owner: str) -> float:
        with pytest.raises(ListLimitReached) as caught:
            self.list(owner, 0)
        wait: float = caught.value.details["retry_after_s"]
        return wait


def test_a_caller_that_lists_without_end_gets_its_share_and_others_are_served() -> None:
    world = World()
    for _ in range(51):
        world.list("mine", 0.1)
    wait_s = world.refused_for("mine")
    world.list("yours", 0.1)
    world.now += wait_s
    world.list("mine", 0.1)
    began = world.now
    lists = 0
    while world.now < began + 1000:
        world.now += 0.05
        try:
            world.list("mine", 0.1)
            lists += 1
        except ListLimitReached:
            pass
    assert 0.24 * 1000 < lists * 0.1 < 0.26 * 1000


def test_the_lists_of_a_page_that_is_scrolled_are_never_refused() -> None:
    world = World()
    for _ in range(2000):
        world.list("mine", 0.01)
        world.now += 0.05


def test_the_wait_that_is_told_suffices_and_has_an_end() -> None:
    world = World()
    world.list("mine", 1000)
    wait_s = world.refused_for("mine")
    assert wait_s <= 22
    world.now += wait_s
    world.list("mine", 0)


def test_lists_at_the_same_time_are_bounded_before_any_has_ended() -> None:
    world, running = World(), 0

    def nest() -> None:
        nonlocal running
        with world.budget.spending("mine"):
            running += 1
            nest()

    with pytest.raises(ListLimitReached):
        nest()
    assert running == 20
    world.list("mine", 0)  # what was reserved is free again


def test_many_callers_take_little_memory() -> None:
    world = World()
    for number in range(3000):
        world.list(str(number), 10)
    assert len(world.budget._accounts) <= 1000


def test_over_http_it_is_429_with_a_time_for_that_key_alone(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = itertools.count(step=1.5)
    monkeypatch.setattr(gallery, "ListBudget", lambda: ListBudget(used=lambda: next(used)))
    easel = Installation(make_app())
    for name in ("mine", "yours"):
        easel.add(name, None)
    answers = [easel.call("mine", "GET", "/api/images?q=cat") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 4 + [429]
    assert answers[-1].get_json()["error"]["code"] == "image.list_limit"
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 22
    assert answers[-1].headers["x-should-retry"] == "true"
    assert easel.call("yours", "GET", "/api/images?q=cat").status_code == 200


@pytest.fixture
def make_slow(tmp_path: Path) -> Callable[[float], ImageStore]:
    """A store with prompts in which short words must be looked for one by one."""

    def make(max_page_cpu_s: float) -> ImageStore:
        index = ImageIndex(tmp_path, max_page_cpu_s=max_page_cpu_s)
        return ImageStore(tmp_path, max_count=10_000, max_bytes=10**9, index=index)

    store = make(1000)
    prompt = (SHORT_WORDS + " lighthouse ") * 35
    for number in range(150):
        store.keep(b"x", "png", ImageFacts(prompt=f"{number} {prompt}"))
    return make


def test_a_search_that_takes_too_long_is_ended_and_the_index_stays_usable(
    make_slow: Callable[[float], ImageStore],
) -> None:
    store = make_slow(0.001)
    began = time.thread_time()
    with pytest.raises(SearchTimedOut):
        store.page(ImageFilter(text=SHORT_WORDS), limit=200)
    assert time.thread_time() - began < 1
    (name,) = [image.name for image in store.index.records([store.keep(b"y", "png", ImageFacts()).name])]
    assert store.index.get(name) is not None  # reads that are no searches have no limit
    assert len(make_slow(1000).page(ImageFilter(text="lighthouse"), limit=10).images) == 10


def test_a_write_after_a_search_that_took_too_long_is_not_ended(
    make_slow: Callable[[float], ImageStore],
) -> None:
    store = make_slow(0.0)
    for _ in range(3):
        with pytest.raises(SearchTimedOut):
            store.page(ImageFilter(text=SHORT_WORDS), limit=200)
        with store.index._database.writing(1.0) as connection:
            count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000) SELECT count(*) FROM n"
            assert connection.execute(count).fetchone() == (50_000,)
