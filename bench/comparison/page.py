"""Writes docs/comparison.md from the numbers: every figure and outcome in the table is one of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.comparison.cells import Cell

_DOCS = Path(__file__).resolve().parents[2] / "docs"
DATA, PAGE = _DOCS / "comparison.json", _DOCS / "comparison.md"
PROGRAMS = ("easel", "comfy-api-proxy", "gpu-broker")
Words = Callable[[Cell], str]

_INTRODUCTION = """\
# Beside comfy-api-proxy and gpu-broker

What Easel and two programs from PyPI do in the same situations. `make comparison` installs the two into environments of
their own, measures all three and writes this page and [comparison.json](comparison.json); a test compares the two.
[0045](decisions/0045-comparison.md) says what is compared and how.

They have different aims. comfy-api-proxy puts the Comfy API v2 in front of one ComfyUI: its clients send graphs. gpu-broker
hands a GPU from LLM servers to ComfyUI and back: its clients send chats and jobs; what is measured here is its
demo, which simulates the GPU, the LLMs and the pictures, with durations of its own. Easel takes OpenAI's image and chat
requests. So a row tells what a user of each sees, not which program is better in all.
"""


def _wrapped(text: str, width: int = 120) -> str:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


def render(document: Mapping[str, Any]) -> str:
    """The page."""
    cells = document["cells"]
    parts = [
        _wrapped_paragraphs(_INTRODUCTION),
        *_where(document),
        "",
        *_table(cells),
        "",
        *_numbers(cells),
        "",
    ]
    return "\n".join(parts)


def _wrapped_paragraphs(text: str) -> str:
    return "\n\n".join(_wrapped(part) for part in text.strip().split("\n\n")) + "\n"


def _where(document: Mapping[str, Any]) -> Iterator[str]:
    versions, pythons = document["versions"], document["pythons"]
    named = ", ".join(
        f"{name} {versions[name]}" + (f" (Python {pythons[name]})" if name in pythons else " (not installed)")
        for name in PROGRAMS
    )
    yield _wrapped(
        f"Measured on {document['date']}: {named}; Easel was installed from its checkout, the others from PyPI. "
        f"The machine: {document['machine']}, {document['system']}, load {document['load']} at the end. Compare the "
        "ratios, not the times, and even those vary from run to run while other programs need the cores "
        "([0045](decisions/0045-comparison.md) has two runs). Of what happens during a job there is one observation each."
    )
    yield ""
    yield _wrapped(
        "Behind Easel and comfy-api-proxy was the same process of Easel's sketch engine, which speaks ComfyUI's "
        "protocol and draws almost at once; where a job is disturbed, a picture takes 3 s. comfy-api-proxy's client reads "
        "the picture from the file that SaveImage writes, as one of the direct clients does. Easel asks for it over the "
        "WebSocket where the engine can send it so, as the other one does, and no file is written. "
        "comfy-api-proxy's client polls every 5 ms, since its documentation says to poll for the state of a job."
    )


def _table(cells: Mapping[str, Mapping[str, Cell]]) -> Iterator[str]:
    yield f"| | {' | '.join(PROGRAMS)} |"
    yield "| --- | --- | --- | --- |"
    for row, (title, words) in _ROWS.items():
        texts = [_text(cells[name].get(row), words[name]) for name in PROGRAMS]
        yield f"| **{title}** | {' | '.join(texts)} |"


def _text(cell: Cell | None, words: Words) -> str:
    if cell is None:
        return "not measured: the comparison did not get so far"
    if cell["status"] != "measured":
        return f"{cell['status']}: {cell['why']}".replace("|", "\\|").replace("\n", " ")
    return words(cell["values"])


def _numbers(cells: Mapping[str, Mapping[str, Cell]]) -> Iterator[str]:
    """The figures that Easel and comfy-api-proxy both have, as ratios."""
    yield "## In figures: Easel and comfy-api-proxy"
    yield ""
    yield "Less is better in each row. The ratio is Easel's figure, divided by comfy-api-proxy's."
    yield ""
    yield "| | Easel | comfy-api-proxy | ratio |"
    yield "| --- | --- | --- | --- |"
    for title, row, name, unit in _FIGURES:
        own, other = (_figure(cells[program].get(row), name) for program in PROGRAMS[:2])
        if own is not None and other is not None:
            yield f"| {title} | {unit(own)} | {unit(other)} | {own / other:.2f} |"


def _figure(cell: Cell | None, name: str) -> float | None:
    if cell is None or cell["status"] != "measured":
        return None
    value: Any = cell["values"][name]
    return float(statistics.median(value) if isinstance(value, list) else value)


def _s(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 0.95 else f"{seconds * 1000:.0f} ms"


def _median(values: list[float]) -> str:
    return _s(statistics.median(values))


# --- rows ------------------------------------------------------------------------------------------


def _install(cell: Cell) -> str:
    return f"`pip install` took {_s(cell['install_s'])}, {cell['mb']:.0f} MB with dependencies"


def _start(cell: Cell) -> str:
    return f"answers after {_median(cell['answer_s'])}, first picture after {_median(cell['picture_s'])}"


def _start_of_broker(cell: Cell) -> str:
    return f"answers after {_median(cell['answer_s'])}; its pictures are simulated, with durations of its own"


def _overhead(cell: Cell) -> str:
    parts = []
    for size in (64, 512):
        through = cell[f"through_{size}_s"]
        beside = (_beside(through, cell[f"{kind}_{size}_s"], kind) for kind in ("direct", "socket"))
        parts.append(f"{size}×{size}: {_s(through)} ({'; '.join(beside)})")
    return "; ".join(parts)


def _beside(through: float, direct: float, kind: str) -> str:
    how = "a direct client with a file" if kind == "direct" else "with the WebSocket"
    return f"{how} {_s(direct)}, {(through - direct) * 1000:+.0f} ms, {through / direct:.2f} times"


def _kill_of_easel(cell: Cell) -> str:
    job = f"the job is `{cell['job_state']}` {_s(cell['picture_s'])} after the kill, {_picture(cell)}"
    retry = "answered with the picture" if cell["retry_status"] == 200 else f"answered {cell['retry_status']}"
    return (
        f"{job} (begun {_times(cell['attempts'])}; the start took {_s(cell['start_s'])}). An ordinary request "
        f"{'breaks off' if cell['connection_broke'] else 'is answered'}; sent again with its `Idempotency-Key` it is {retry}"
    )


def _kill_of_proxy(cell: Cell) -> str:
    def part(prefix: str) -> str:
        return (
            f"the job is `{cell[f'{prefix}job_state']}` {_s(cell[f'{prefix}picture_s'])} after the kill, "
            f"{'with' if cell[f'{prefix}has_picture'] else 'without'} its picture"
        )

    start = f"the start took {_s(cell['start_s'])}"
    return f"{part('')} ({start}). With `--state-dir`: {part('state_dir_')}"


def _kill_of_broker(cell: Cell) -> str:
    return (
        f"the job is gone ({cell['job_state']}): the demo keeps its data in a folder for one run. Its documentation says "
        "that the service itself keeps jobs in SQLite, which was not measured"
        if cell["job_state"] == "404"
        else f"the job is `{cell['job_state']}`"
    )


def _picture(cell: Cell) -> str:
    return "with its picture" if cell["has_picture"] else "without a picture"


def _term_of_easel(cell: Cell) -> str:
    got = "got its picture (200)" if cell["request_status"] == 200 else f"ended with {cell['request_status']}"
    job = f"a job is `{cell['job_state']}` after the start"
    return f"the running request {got}; it {_ended(cell['exit_s'])}; {job}"


def _term_of_proxy(cell: Cell) -> str:
    return f"it {_ended(cell['exit_s'])}; after the start the job is `{cell['job_state']}`, {_picture(cell)}"


def _term_of_broker(cell: Cell) -> str:
    got = "got an answer" if cell["is_answered"] else "got no answer"
    return (
        f"a client that waited for the job {got}, and the demo {_ended(cell['waited_exit_s'])}; with a job and no client it "
        f"{_ended(cell['exit_s'])}"
    )


def _ended(seconds: float | None) -> str:
    return "had not ended after 60 s" if seconds is None else f"ended after {_s(seconds)}"


def _idempotency_of_easel(cell: Cell) -> str:
    statuses = ", ".join(map(str, cell["statuses"]))
    return (
        f"two at once and one later: {statuses}, {cell['pictures']} picture, drawn {_times(cell['drawn'])}. "
        f"Another body with that key: {cell['other_body']} `{cell['other_body_code']}`"
    )


def _idempotency_of_proxy(cell: Cell) -> str:
    first, second = cell["statuses"]
    nothing = "; the second gets no job or picture" if second >= 400 else ""
    return f"{first}, then {second} `{cell['code']}`: drawn {_times(cell['drawn'])}{nothing}"


def _idempotency_of_broker(cell: Cell) -> str:
    jobs = "1 job" if cell["jobs"] == 1 else f"the header makes no difference, {cell['jobs']} jobs"
    return f"{', '.join(map(str, cell['statuses']))}: {jobs}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _cancel_of_easel(cell: Cell) -> str:
    hang_up = f"A client that hangs up: idle after {_s(cell['hang_up_stopped_s'])}"
    return f"{_cancelled(cell)}. {hang_up}"


def _cancelled(cell: Cell) -> str:
    return f"{cell['status']}; the engine was idle {_s(cell['stopped_s'])} after that answer, the job is `{cell['state']}`"


def _cancel_of_proxy(cell: Cell) -> str:
    older = f"{cell['older_status']}, and the job is `{cell['older_state']}`"
    return f"{_cancelled(cell)}. With an engine without `POST /api/jobs/ID/cancel` (older ComfyUIs): {older}"


def _cancel_of_broker(cell: Cell) -> str:
    delete, cancel = cell["statuses"]
    left = f"That of a client that hung up while it waited is `{cell['left_state']}`"
    route = "no route for it" if min(delete, cancel) >= 400 else "cancelled"
    return f"{route} (`DELETE` {delete}, `POST …/cancel` {cancel}): the job is `{cell['job_state']}`. {left}"


def _unknown_of_easel(cell: Cell) -> str:
    named = "and named as ignored" if cell["is_named"] else "and not mentioned"
    return (
        f"`stepz: 4`: {cell['status']} {named}. `size: banana`: {cell['size_status']} `{cell['size_code']}`"
    )


def _unknown_of_proxy(cell: Cell) -> str:
    named = "named" if cell["is_named"] else "not mentioned"
    left = ", left to the engine" if cell["node_input_status"] < 400 else ""
    inside = f"in a node: {cell['node_input_status']}{left}"
    return f"`stepz: 4` beside the graph: {cell['status']}, {named}; {inside}; in `extra_data`: {cell['extra_data_status']}"


def _unknown_of_broker(cell: Cell) -> str:
    named = "named" if cell["is_named"] else "not mentioned"
    size = "named" if cell["size_is_named"] else "not mentioned"
    return f"`stepz: 4`: {cell['status']}, {named}. `size: banana`: {cell['size_status']}, {size}"


def _chat_of_easel(cell: Cell) -> str:
    picture = (
        "drawn to its end (200)" if cell["picture_status"] == 200 else f"answered {cell['picture_status']}"
    )
    memory = f"out of memory {_times(cell['out_of_memory']) if cell['out_of_memory'] else 'never'}"
    return (
        f"answered after {_s(cell['chat_s'])}, {_s(cell['alone_s'])} without a picture. The picture was {picture}; {memory} "
        "(simulated: 2 s a picture, 3 s to load)"
    )


def _chat_of_broker(cell: Cell) -> str:
    return (
        f"answered after {_s(cell['chat_s'])}, {_s(cell['alone_s'])} without a picture; the picture is "
        f"`{cell['job_state']}` (simulated: 6 s a picture, 6 s to load, chats of 2 to 5 s)"
    )


def _megabytes(value: float) -> str:
    return f"{value:.0f} MB"


_FIGURES: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("`pip install`", "install", "install_s", _s),
    ("installed, with dependencies", "install", "mb", _megabytes),
    ("start until the first answer", "start", "answer_s", _s),
    ("start until the first picture", "start", "picture_s", _s),
    ("a picture of 64×64", "overhead", "through_64_s", _s),
    ("a picture of 512×512", "overhead", "through_512_s", _s),
    ("from `kill -9` to the picture of the job", "kill", "picture_s", _s),
    ("from the answer to a cancel until the engine is idle", "cancel", "stopped_s", _s),
)


def _never(cell: Cell) -> str:
    raise AssertionError("this program cannot be measured so")


_ROWS: dict[str, tuple[str, dict[str, Words]]] = {
    "install": ("Installation", dict.fromkeys(PROGRAMS, _install)),
    "start": (
        "First answer after the start, median of 3",
        {"easel": _start, "comfy-api-proxy": _start, "gpu-broker": _start_of_broker},
    ),
    "overhead": (
        "Time for a picture, median of 30, each in turn",
        {"easel": _overhead, "comfy-api-proxy": _overhead, "gpu-broker": _never},
    ),
    "kill": (
        "`kill -9` of all its processes during a job, then started again",
        {"easel": _kill_of_easel, "comfy-api-proxy": _kill_of_proxy, "gpu-broker": _kill_of_broker},
    ),
    "term": (
        "SIGTERM during a job, then started again",
        {"easel": _term_of_easel, "comfy-api-proxy": _term_of_proxy, "gpu-broker": _term_of_broker},
    ),
    "idempotency": (
        "The same request again with the same `Idempotency-Key`",
        {
            "easel": _idempotency_of_easel,
            "comfy-api-proxy": _idempotency_of_proxy,
            "gpu-broker": _idempotency_of_broker,
        },
    ),
    "cancel": (
        "Cancelling a running job",
        {"easel": _cancel_of_easel, "comfy-api-proxy": _cancel_of_proxy, "gpu-broker": _cancel_of_broker},
    ),
    "unknown": (
        "A field that it does not know, a value that means nothing",
        {"easel": _unknown_of_easel, "comfy-api-proxy": _unknown_of_proxy, "gpu-broker": _unknown_of_broker},
    ),
    "chat": (
        "A chat while a picture is drawn",
        {"easel": _chat_of_easel, "comfy-api-proxy": _never, "gpu-broker": _chat_of_broker},
    ),
}
