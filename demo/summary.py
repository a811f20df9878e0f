"""The table at the end: what was asked for and answered, how long it waited, what the switches cost, and what the arbiter's
own simulation says of another policy. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arbiter.replay import read_recording, recorded_waits, simulate
from arbiter.values import Policy
from demo.people import Result

_NAMES = {"generation": "pictures", "inference": "chats"}


@dataclass(frozen=True)
class Summary:
    """`waits`, `same_policy` and `no_stay`: as `easel gpu replay` has them, and how long the switches
    took; the last two are simulated."""

    answered: dict[str, int]
    failed: tuple[Result, ...]
    out_of_memory: int
    waits: dict[str, Any]
    same_policy: dict[str, Any]
    no_stay: dict[str, Any]
    min_stay_s: float

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "answered": self.answered,
            "failed": [{"who": one.act.who, "kind": one.act.kind, "error": one.error} for one in self.failed],
            "out_of_memory": self.out_of_memory,
            "measured": self.waits,
            "simulated_same_policy": self.same_policy,
            "simulated_without_minimum_stay": self.no_stay,
        }


def summarize(results: Sequence[Result], lines: Sequence[str], out_of_memory: int) -> Summary:
    """`lines`: of the event log."""
    recording = read_recording(lines)
    switching_s = sum(event["took_s"] for event in map(json.loads, lines) if event["event"] == "switch_ended")
    policy = recording.policy or Policy()
    good = [result for result in results if not result.error]
    kinds = ("picture", "edit", "chat")
    return Summary(
        {kind: sum(result.act.kind == kind for result in good) for kind in kinds},
        tuple(result for result in results if result.error),
        out_of_memory,
        {**recorded_waits(recording).summary(), "switching_s": round(switching_s, 3)},
        simulate(recording, policy).summary(),
        simulate(recording, replace(policy, min_stay_s=0.0)).summary(),
        policy.min_stay_s,
    )


def lines_of(summary: Summary) -> Iterator[str]:
    """For people."""
    answered = summary.answered
    yield (
        f"Answered: {answered['picture']} pictures, {answered['edit']} edits, {answered['chat']} chats. "
        f"Failed: {len(summary.failed)}. Out of memory: {summary.out_of_memory}."
    )
    for result in summary.failed:
        yield f"  {result.act.who}, {result.act.kind}: {result.error}"
    yield ""
    yield f"{'waits for the GPU, in seconds':44} {'count':>6} {'median':>8} {'longest':>8}"
    yield from _rows("measured", summary.waits)
    yield from _rows("simulated, the same policy", summary.same_policy)
    title = "simulated, whoever waits is next (gpu.min_stay_s: 0)"
    yield from _rows(title, summary.no_stay)


def _rows(title: str, waits: dict[str, Any]) -> Iterator[str]:
    yield f"{title}: {waits['switches']} switches, {waits['switching_s']:.1f} s in all"
    for mode, name in _NAMES.items():
        figures = waits[mode]
        if figures["requests"]:
            numbers = f"{figures['median_s']:8.2f} {figures['longest_s']:8.2f}"
            yield f"  {name:42} {figures['requests']:6} {numbers}"
