"""Which engine draws a job: by value, with properties, and with each rule broken on purpose."""

from __future__ import annotations

import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import choice
from engines.choice import Candidate, Choice, Refusal, Wanted, choose, explain, should_move

ROOT = Path(__file__).parents[2]
SOURCE = (ROOT / "engines/choice.py").read_text("utf-8")
README = (ROOT / "engines/README.md").read_text("utf-8")
GB = 10**9
FLUX = Wanted("flux", need_bytes=17 * GB, share=0.1)
DOWN = Refusal("down", "It does not answer.")


@dataclass(frozen=True)
class Case:
    """What is expected of a choice, and why."""

    why: str
    candidates: tuple[Candidate, ...]
    name: str | None
    code: str = ""
    wanted: Wanted = FLUX


def warm(name: str, **facts: object) -> Candidate:
    return Candidate(name, **{"is_warm": True, **facts})  # type: ignore[arg-type]


def cold(name: str, **facts: object) -> Candidate:
    return Candidate(name, **{"load_s": 5.0, **facts})  # type: ignore[arg-type]


CHOICES = [
    Case("there is no engine", (), None),
    Case("the only engine draws all", (cold("a", wait_s=90.0),), "a", "only_one"),
    Case("the only engine cannot draw it", (warm("a", refusal=DOWN),), None),
    Case("all refuse", (warm("a", refusal=DOWN), cold("b", refusal=DOWN)), None),
    Case(
        "one that is down draws nothing, however warm", (warm("a", refusal=DOWN), cold("b")), "b", "only_one"
    ),
    Case(
        "the one with enough memory",
        (cold("a", memory_bytes=16 * GB), cold("b", memory_bytes=24 * GB)),
        "b",
        "only_fit",
    ),
    Case(
        "too little memory is not made up for by a short wait",
        (warm("a", memory_bytes=16 * GB), cold("b", memory_bytes=24 * GB, wait_s=60.0)),
        "b",
        "only_fit",
    ),
    Case(
        "memory that is just enough",
        (warm("a", memory_bytes=17 * GB), cold("b", memory_bytes=24 * GB)),
        "a",
        "warm",
    ),
    Case("memory that is not known may be enough", (warm("a"), cold("b", memory_bytes=24 * GB)), "a", "warm"),
    Case(
        "no engine has enough: they are compared all the same",
        (cold("a", memory_bytes=8 * GB, wait_s=9.0), cold("b", memory_bytes=12 * GB)),
        "b",
        "load",
    ),
    Case(
        "a need that is not known leaves none out",
        (warm("a", memory_bytes=1), cold("b", memory_bytes=24 * GB)),
        "a",
        "warm",
        Wanted("new", share=0.1),
    ),
    Case("both are free: the one that has the model loaded", (cold("a"), warm("b")), "b", "warm"),
    Case("a short wait is less than a load", (cold("a"), warm("b", wait_s=3.0)), "b", "warm"),
    Case(
        "a load that would end a little sooner delays others more than it helps",
        (cold("a"), warm("b", wait_s=6.0)),
        "b",
        "warm_wait",
    ),
    Case("a long wait is more than a load", (cold("a"), warm("b", wait_s=9.0)), "a", "load_sooner"),
    Case(
        "both have it loaded: the shorter wait", (warm("a", wait_s=3.0), warm("b", wait_s=1.0)), "b", "warm"
    ),
    Case(
        "a fast GPU draws sooner after a longer wait",
        (warm("a", render_s=9.0), warm("b", wait_s=4.0, render_s=3.0)),
        "b",
        "warm",
    ),
    Case("none has it loaded: the shorter load", (cold("a", load_s=9.0), cold("b", load_s=3.0)), "b", "load"),
    Case("none has it loaded: the soonest", (cold("a", wait_s=4.0), cold("b")), "b", "load"),
    Case(
        "a model that nobody needs is pushed out, not one that many need",
        (cold("a", displaced="sdxl", displaced_share=0.4), cold("b", displaced="rare", displaced_share=0.01)),
        "b",
        "load",
    ),
    Case(
        "free memory is taken before a model is pushed out",
        (cold("a", displaced="sdxl", displaced_share=0.2), cold("b", wait_s=2.0)),
        "b",
        "load",
    ),
    Case(
        "it waits rather than push out what is needed soon",
        (cold("a", displaced="sdxl", displaced_share=0.4), warm("b", wait_s=11.0)),
        "b",
        "warm_wait",
    ),
    Case(
        "it does not wait for ever for that",
        (cold("a", displaced="sdxl", displaced_share=0.4), warm("b", wait_s=12.0)),
        "a",
        "load_sooner",
    ),
    Case(
        "a model that most jobs need is loaded once more before the wait is as long as the load",
        (cold("a"), warm("b", wait_s=4.0)),
        "a",
        "load_sooner",
        Wanted("flux", share=0.9),
    ),
    Case(
        "that is no reason to load it while an engine with it is free",
        (cold("a"), warm("b")),
        "b",
        "warm",
        Wanted("flux", share=1.0),
    ),
    Case(
        "a load that takes no time still has a price",
        (cold("a", load_s=0.0), warm("b", wait_s=0.2)),
        "b",
        "warm_wait",
    ),
    Case(
        "engines that are as good: those that others depend on stay free",
        (warm("a", only_here=7), warm("b", jobs=1, wait_s=0.05)),
        "b",
        "kept_free",
    ),
    Case(
        "of two that others depend on, the one with fewer such jobs",
        (warm("a", only_here=7), warm("b", only_here=2, jobs=1)),
        "b",
        "kept_free",
    ),
    Case(
        "an engine is not kept free if the others are worse",
        (warm("a", only_here=7), warm("b", wait_s=2.0)),
        "a",
        "warm",
    ),
    Case(
        "keeping an engine free is not worth a load",
        (warm("a", only_here=7), cold("b", load_s=0.0)),
        "a",
        "warm",
    ),
    Case("equals: the one with the fewest jobs", (warm("a", jobs=2), warm("b", jobs=1)), "b", "warm"),
    Case(
        "equals: the one that was used longest ago",
        (warm("a", last_used=9.0), warm("b", last_used=4.0)),
        "b",
        "warm",
    ),
    Case("nothing tells them apart: by name", (warm("b"), warm("a")), "a", "warm"),
    Case(
        "a difference of a tenth of a render does not count",
        (warm("a", jobs=1), warm("b", wait_s=0.09)),
        "b",
        "warm",
    ),
    Case("a larger one does", (warm("a", jobs=1), warm("b", wait_s=0.2)), "a", "warm"),
]


@dataclass(frozen=True)
class Move:
    """What is expected of a job that waits at `current`, and why. `name`: where it goes; None: it stays."""

    why: str
    current: Candidate
    others: tuple[Candidate, ...]
    name: str | None
    code: str = "move"
    wanted: Wanted = FLUX


MOVES = [
    Move("there is no other engine", warm("a", wait_s=60.0), (), None),
    Move("no other can draw it", warm("a", wait_s=60.0), (warm("b", refusal=DOWN),), None),
    Move("nothing is gained", warm("a", wait_s=2.0), (warm("b", wait_s=2.0),), None),
    Move("less than a second is gained", warm("a", wait_s=0.9), (warm("b"),), None),
    Move("a second and more is gained", warm("a", wait_s=1.5), (warm("b"),), "b"),
    Move("a second of many is not worth it", warm("a", wait_s=20.0), (warm("b", wait_s=17.0),), None),
    Move("a third of many is", warm("a", wait_s=20.0), (warm("b", wait_s=13.0),), "b"),
    Move("a load there counts", warm("a", wait_s=8.0), (cold("b"),), None),
    Move("a load there for a long wait here", warm("a", wait_s=20.0), (cold("b"),), "b"),
    Move(
        "it leaves an engine that is down for any other",
        warm("a", refusal=DOWN),
        (cold("b", wait_s=60.0),),
        "b",
        "left",
    ),
    Move("all are down: there is nowhere to go", warm("a", refusal=DOWN), (warm("b", refusal=DOWN),), None),
    Move(
        "it leaves an engine that is too small when one that is large enough is back",
        warm("a", memory_bytes=8 * GB),
        (cold("b", memory_bytes=24 * GB),),
        "b",
        "left",
    ),
    Move(
        "it never moves to an engine that is too small",
        cold("a", memory_bytes=24 * GB, wait_s=99.0),
        (warm("b", memory_bytes=8 * GB),),
        None,
    ),
    Move("the engine where it waits is not offered to it", warm("a", wait_s=60.0), (warm("a"),), None),
]


def broken_promises(module: ModuleType) -> Iterator[str]:
    """The cases in which a module chooses otherwise."""
    for case in CHOICES:
        made = module.choose(case.wanted, case.candidates)
        if (made and made.name, made and made.reason.code) != (case.name, case.code if case.name else None):
            yield case.why
    for move in MOVES:
        made = module.should_move(move.wanted, move.current, move.others)
        if (made and made.name, made and made.reason.code) != (move.name, move.code if move.name else None):
            yield move.why


@pytest.mark.parametrize("case", CHOICES, ids=[case.why for case in CHOICES])
def test_choice(case: Case) -> None:
    made = choose(case.wanted, case.candidates)
    if case.name is None:
        assert made is None
    else:
        assert made is not None
        assert (made.name, made.reason.code) == (case.name, case.code)


@pytest.mark.parametrize("move", MOVES, ids=[move.why for move in MOVES])
def test_move(move: Move) -> None:
    made = should_move(move.wanted, move.current, move.others)
    assert (made and made.name) == move.name
    assert made is None or made.reason.code == move.code


MUTATIONS = {
    "1: refusals": ("each for each in candidates if each.refusal is None", "each for each in candidates"),
    "2: memory": ("if _fits(wanted, each)] or usable", "] or usable"),
    "2: none has enough": ("if _fits(wanted, each)] or usable", "if _fits(wanted, each)] or usable[:1]"),
    "2: unknown memory": ("candidate.memory_bytes is None or", "candidate.memory_bytes is not None and"),
    "2: just enough": ("candidate.memory_bytes >= wanted", "candidate.memory_bytes > wanted"),
    "3: waits": ("end_s = candidate.wait_s + _own_s(candidate)", "end_s = _own_s(candidate)"),
    "3: renders": ("candidate.render_s + (0.0", "1.0 + (0.0"),
    "3: warm": ("    if candidate.is_warm:\n        return end_s\n", ""),
    "3: loads": ("0.0 if candidate.is_warm else candidate.load_s", "0.0"),
    "3: price of a load": ("later = prices.load * (", "later = 0 * ("),
    "3: copies": ("1 - prices.copy * wanted.share", "1"),
    "3: a copy is no gain by itself": ("priced_s if later > 0 else candidate.load_s", "3 * candidate.load_s"),
    "3: what is pushed out": ("prices.displaced * likely", "0 * likely"),
    "3: its share": ("needed / (needed + wanted.share) if needed", "1.0 if needed"),
    "3: free loads": ("max(candidate.load_s, prices.min_load_s)", "candidate.load_s"),
    "4: tolerance": ("+ prices.tolerance * _own_s(cheapest)", ""),
    "4: wide tolerance": ("+ prices.tolerance * _own_s(cheapest)", "+ 5 * _own_s(cheapest)"),
    "4: needless loads": (
        "key=lambda each: (not each.is_warm, each.only_here,",
        "key=lambda each: (each.only_here,",
    ),
    "4: kept free": ("each.only_here, *_turn(each)", "*_turn(each)"),
    "5: jobs": ("return candidate.jobs, candidate.last_used", "return 0, candidate.last_used"),
    "5: last used": ("candidate.last_used, candidate.name", "0.0, candidate.name"),
    "5: name": ("candidate.last_used, candidate.name", 'candidate.last_used, ""'),
    "6: refusals": ("    if current.refusal is not None:", "    if False:"),
    "6: memory": ("if _fits(wanted, current) != _fits(wanted, better):", "if False:"),
    "6: too small": ("        if not _fits(wanted, better):\n            return None\n", ""),
    "6: seconds": ("max(prices.move_gain_s, prices", "max(0.0, prices"),
    "6: share": ("prices.move_gain * cost_s)", "0.0)"),
    "6: the same engine": ("if each.name != current.name", ""),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_each_rule_is_needed_by_a_case(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = MUTATIONS[mutation]
    assert old in SOURCE
    broken = ModuleType("broken_choice")
    monkeypatch.setitem(sys.modules, broken.__name__, broken)  # dataclasses look their module up
    exec(compile(SOURCE.replace(old, new), "choice.py", "exec"), broken.__dict__)
    assert list(broken_promises(broken))


def test_the_cases_hold_without_a_mutation() -> None:
    assert list(broken_promises(choice)) == []


seconds = st.floats(0, 100)
shares = st.floats(0, 1)
refusals = st.none() | st.just(DOWN)
facts = st.fixed_dictionaries(
    {
        "refusal": refusals,
        "wait_s": seconds,
        "is_warm": st.booleans(),
        "load_s": seconds,
        "render_s": st.floats(0.01, 60),
        "jobs": st.integers(0, 9),
        "memory_bytes": st.sampled_from([None, 8 * GB, 24 * GB, 80 * GB]),
        "displaced_share": shares,
        "only_here": st.integers(0, 3),
        "last_used": seconds,
    }
)


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Wanted, list[Candidate]]:
    wanted = Wanted("flux", draw(st.sampled_from([0, 5 * GB, 17 * GB, 90 * GB])), draw(shares))
    engines = draw(st.lists(facts, max_size=6))
    return wanted, [Candidate(f"gpu{number}", **fact) for number, fact in enumerate(engines)]


def fits(wanted: Wanted, candidate: Candidate) -> bool:
    return candidate.memory_bytes is None or candidate.memory_bytes >= wanted.need_bytes


def named(candidates: Sequence[Candidate], made: Choice) -> Candidate:
    return next(each for each in candidates if each.name == made.name)


@given(fleets())
def test_an_engine_is_chosen_if_one_can_draw_and_it_is_one_of_those(
    fleet: tuple[Wanted, list[Candidate]],
) -> None:
    wanted, candidates = fleet
    made = choose(wanted, candidates)
    usable = [each for each in candidates if each.refusal is None]
    assert (made is not None) == bool(usable)
    if made is not None:
        chosen = named(candidates, made)
        assert chosen in usable
        assert fits(wanted, chosen) or not any(fits(wanted, each) for each in usable)


@given(fleets(), st.randoms(use_true_random=False))
def test_the_order_of_the_engines_does_not_matter(
    fleet: tuple[Wanted, list[Candidate]], chance: random.Random
) -> None:
    wanted, candidates = fleet
    shuffled = list(candidates)
    chance.shuffle(shuffled)
    assert choose(wanted, candidates) == choose(wanted, shuffled)


@given(fleets())
def test_an_engine_that_waits_shorter_and_has_it_loaded_is_not_passed_over_for_more_than_the_tolerance(
    fleet: tuple[Wanted, list[Candidate]],
) -> None:
    wanted, candidates = fleet
    made = choose(wanted, candidates)
    if made is not None:
        chosen = named(candidates, made)
        for each in candidates:
            if each.refusal is None and fits(wanted, each) and each.is_warm:
                assert made.ranking[0].cost_s <= 1.1 * (each.wait_s + each.render_s) + 0.001
        assert chosen.name == made.ranking[0].name


@given(fleets())
def test_a_ranking_has_every_engine_once(fleet: tuple[Wanted, list[Candidate]]) -> None:
    wanted, candidates = fleet
    made = choose(wanted, candidates)
    if made is not None:
        assert sorted(rank.name for rank in made.ranking) == sorted(each.name for each in candidates)
        assert made.ranking[0].left_out is None
        refusing = {each.name for each in candidates if each.refusal is not None}
        assert refusing <= {rank.name for rank in made.ranking if rank.left_out is not None}


@given(fleets(), st.integers(0, 5))
def test_a_job_never_moves_back_while_the_facts_stay(
    fleet: tuple[Wanted, list[Candidate]], start: int
) -> None:
    wanted, candidates = fleet
    if not candidates:
        return
    current = candidates[start % len(candidates)]
    visited = [current.name]
    while (move := should_move(wanted, current, candidates)) is not None:
        assert move.name not in visited
        visited.append(move.name)
        current = named(candidates, move)


@given(fleets())
def test_a_job_that_was_just_placed_stays(fleet: tuple[Wanted, list[Candidate]]) -> None:
    wanted, candidates = fleet
    made = choose(wanted, candidates)
    if made is not None:
        assert should_move(wanted, named(candidates, made), candidates) is None


def test_equal_engines_take_turns() -> None:
    engines = {name: warm(name) for name in ("a", "b", "c")}
    order = []
    for turn in range(1, 7):
        made = choose(FLUX, list(engines.values()))
        assert made is not None
        order.append(made.name)
        engines[made.name] = replace(engines[made.name], last_used=float(turn))
    assert order == ["a", "b", "c", "a", "b", "c"]


def test_two_models_and_two_engines_do_not_take_each_others_place() -> None:
    """Each engine keeps its model, although the other one is free at times."""
    loaded = {"a": "flux", "b": "sdxl"}
    for number in range(40):
        model = ("flux", "sdxl")[number % 2]
        facts = [
            Candidate(
                name,
                wait_s=2.0 if has == model else 0.0,
                is_warm=has == model,
                load_s=5.0,
                displaced=has,
                displaced_share=0.5,
            )
            for name, has in loaded.items()
        ]
        made = choose(Wanted(model, share=0.5), facts)
        assert made is not None
        assert loaded[made.name] == model


def test_an_explanation_says_why_and_lists_all_engines() -> None:
    made = choose(
        FLUX,
        [
            warm("gpu0", wait_s=6.0, memory_bytes=24 * GB),
            cold("gpu1", displaced="sdxl", memory_bytes=24 * GB),
            cold("gpu2", memory_bytes=8 * GB),
            warm("gpu3", refusal=Refusal("drained", "It is drained.")),
        ],
    )
    assert made is not None
    assert explain(made) == [
        "gpu0: flux is loaded there; waiting 6.0 s costs less than loading it elsewhere.",
        "   1. gpu0  ends in 7.0 s, model loaded",
        "   2. gpu1  ends in 6.0 s with loading; counts as 8.0 s, because loading delays other jobs",
        "   3. gpu2  left out (memory): It has less than the 17.0 GB that it needs.",
        "   4. gpu3  left out (drained): It is drained.",
    ]


@pytest.mark.parametrize(
    ("candidates", "text"),
    [
        ((cold("a"),), "It is the only engine."),
        ((cold("a"), cold("b", refusal=DOWN)), "No other engine can draw it now."),
        ((cold("a", displaced="sdxl"), cold("b", wait_s=9.0)), "pushes out sdxl"),
        ((cold("a"), warm("b", wait_s=9.0)), "Where flux is loaded it would wait 9.0 s"),
        ((warm("a", only_here=1), warm("b", jobs=1)), "can be drawn only there"),
    ],
)
def test_a_reason_is_a_sentence(candidates: tuple[Candidate, ...], text: str) -> None:
    made = choose(FLUX, candidates)
    assert made is not None
    assert text in made.reason.text
    assert re.fullmatch(r"[A-Zf].+\.", made.reason.text)


def median_s(call: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def many(count: int) -> list[Candidate]:
    return [
        Candidate(
            f"gpu{number:04d}",
            wait_s=number * 7 % 5,
            is_warm=number % 3 == 0,
            load_s=5.0,
            memory_bytes=24 * GB,
        )
        for number in range(count)
    ]


def test_eight_engines_cost_less_than_300_microseconds() -> None:
    engines = many(8)
    assert median_s(lambda: choose(FLUX, engines), 500) < 0.0003


def test_a_thousand_engines_cost_a_thousand_times_one_at_most() -> None:
    one, thousand = many(1), many(1000)
    ratio = median_s(lambda: choose(FLUX, thousand), 20) / median_s(lambda: choose(FLUX, one), 500)
    assert ratio < 1000


def test_the_readme_numbers_the_rules_as_the_code_does() -> None:
    described = re.findall(r"^(\d+)\. ", README, re.MULTILINE)
    code = re.findall(r"^    # (\d+)\. ", SOURCE, re.MULTILINE)
    assert described == code == [str(number) for number in range(1, len(code) + 1)]


def test_the_readme_has_the_prices_of_the_code() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+)", README, re.MULTILINE))
    prices = choice.DEFAULT_PRICES
    assert {name: float(value) for name, value in rows.items()} == {
        name: getattr(prices, name) for name in prices.__dataclass_fields__
    }


def test_the_readme_lists_the_reasons_of_the_code() -> None:
    listed = re.findall(r"^- `(\w+)`: ", README, re.MULTILINE)
    assert listed == list(choice.ReasonCode.__args__)
