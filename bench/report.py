"""The results as text for people: aims first, then each measurement with medians and ratios leading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench.aims import AIMS

Lines = Iterator[str]


def report(results: Mapping[str, Any]) -> str:
    """All that was measured."""
    lines = ["", "Easel's benchmark", *_machine(results["machine"])]
    aims = [line for aim in AIMS if (line := aim.line(results))]
    lines += ["", "Measured beside what we aim for", *aims] if aims else []
    for name, told in _SECTIONS.items():
        if name in results:
            lines += ["", *told(results[name])]
    return "\n".join(lines)


def _machine(machine: Mapping[str, Any]) -> Lines:
    for name, value in machine.items():
        yield f"  {name:<10} {value}"


def _latency(latency: Mapping[str, Any]) -> Lines:
    count = len(latency["direct"]["values"])
    yield f"One picture of 64 px after the other ({count} each, in turn); ms"
    yield f"  {'':<24}{'median':>9}{'added':>9}{'ratio':>9}{'p95':>9}"
    direct = latency["direct"]
    yield f"  {'direct client':<24}{_ms(direct['median'])}{'':>9}{'':>9}{_ms(direct['p95'])}"
    for name, words in (("b64_json", "gateway, b64_json"), ("url_and_get", "gateway, url + GET")):
        ours = latency[name]
        ratio = f"{ours['ratio']:>8.2f}x"
        yield f"  {words:<24}{_ms(ours['median'])}{_ms(ours['added_s'])}{ratio}{_ms(ours['p95'])}"
    yield ""
    yield from _stages(latency["stages"]["gateway"], latency["stages"]["direct"])


_STAGES = (
    ("compile", "compile_s"),
    ("fit the graph, POST /prompt", "submit_s"),
    ("the engine at work: queued + run", "engine_s"),
    ("fetch: GET /view", "fetch_s"),
    ("finish: metadata, format, keep", "finish_s"),
    ("the rest: HTTP, JSON, base64", "http_s"),
)


def _stages(gateway: Mapping[str, float], direct: Mapping[str, float]) -> Lines:
    yield "Where the time of one picture goes (b64_json); medians, ms"
    yield f"  {'':<34}{'gateway':>9}{'direct':>9}"
    for words, name in _STAGES:
        beside = _ms(direct[name]) if name in direct else ""
        yield f"  {words:<34}{_ms(gateway[name])}{beside}"
    around = gateway["around_s"], direct["around_s"]
    yield f"  {'all but the engine at work':<34}{_ms(around[0])}{_ms(around[1])}{_ms(around[0] - around[1])} more"
    yield f"  the gateway's engine at work: {gateway['queued_s'] * 1000:.2f} queued, {gateway['run_s'] * 1000:.2f} run"


def _throughput(entries: list[Mapping[str, Any]]) -> Lines:
    yield "Pictures a second at once (medians of rounds, in turn); CPU in ms a picture"
    if any(entry["render_ms"] == 0 for entry in entries):
        yield "  An instant render mostly measures how clients, gateway and engine contend for the CPU:"
        yield "  on two shared cores all of them compete. The simulated render is the case that matters."
    heads = (
        "ratio",
        "of rounds",
        "gateway",
        "direct",
        "CPU: gateway",
        "engine",
        "its client",
        "direct client",
    )
    yield f"  {'render':<11}{'clients':>7}" + "".join(f"{head:>14}" for head in heads)
    for entry in entries:
        ours, direct = entry["gateway"], entry["direct"]
        cpu = ours["cpu_s_per_picture"]
        cpus = [cpu["gateway"], cpu.get("engine"), cpu["client"], direct["cpu_s_per_picture"]["client"]]
        lowest, highest = min(entry["ratios"]), max(entry["ratios"])
        shown = [f"{entry['ratio']:.2f}x", f"{lowest:.2f}..{highest:.2f}"]
        shown += [f"{ours['pictures_per_s']:.1f}", f"{direct['pictures_per_s']:.1f}"]
        shown += [_ms(each).strip() if each is not None else "?" for each in cpus]
        yield f"  {_render(entry['render_ms']):<11}{entry['clients']:>7}" + "".join(
            f"{each:>14}" for each in shown
        )


def _render(render_ms: float | None) -> str:
    if render_ms is None:
        return "its own"
    return f"{render_ms:g} ms" if render_ms else "instant"


def _compile(compiled: Mapping[str, Any]) -> Lines:
    yield "Compiling"
    for model, took in compiled["per_model_s"].items():
        yield f"  {model:<34}{_ms(took['median'])} ms   p95 {_ms(took['p95']).strip()} ms"
    catalogue = compiled["catalogue"]
    words = f"catalogue of {catalogue['models']:,} models"
    yield f"  {words:<34}{catalogue['load_s']['median']:>9.2f} s    read, parsed, checked, each model compiled"


def _start(start: Mapping[str, Any]) -> Lines:
    yield f"Start of gunicorn with two workers ({len(start['first_answer_s']['values'])} starts)"
    for name, words in (("first_answer_s", "first answer"), ("first_picture_s", "first picture")):
        took = start[name]
        yield f"  {words:<24}{took['median']:>9.2f} s    slowest {max(took['values']):.2f} s"


def _memory(memory: Mapping[str, Any]) -> Lines:
    yield "Memory after the run, MB (PSS: what is shared counts in parts)"
    holders = [(f"worker {index + 1}", each) for index, each in enumerate(memory["workers"])]
    holders += [("sketch engine", memory["engine"])] if memory["engine"] else []
    for name, each in holders:
        yield f"  {name:<24}RSS {each['rss_mb']:6.1f}   PSS {each['pss_mb']:6.1f}"
    if not holders:
        yield "  this system does not tell"


def _gpu(gpu: Mapping[str, Any]) -> Lines:
    rows = (
        ("an uncontended lease", gpu["lease_s"]),
        ("a switch between tenants that take no time", gpu["switch_s"]),
        ("GET /api/comfyui/status while 50 watch", gpu["status_s"]),
    )
    yield "Sharing the GPU; ms                              median      p95"
    for words, each in rows:
        yield f"  {words:<44} {_ms(each['median']):>8} {_ms(each['p95']):>8}"


def _streams(streams: Mapping[str, Any]) -> Lines:
    direct, gateway = streams["direct_s"], streams["gateway_s"]
    ratio = gateway["median"] / direct["median"]
    yield "Streams: from the request to the first step that is told; ms     median      p95"
    yield f"  {'direct client':<58} {_ms(direct['median'])} {_ms(direct['p95'])}"
    yield f"  {'gateway':<58} {_ms(gateway['median'])} {_ms(gateway['p95'])}   {ratio:.2f}x"
    for name, each in streams.get("large", {}).items():
        words = f"pictures of 2048x2048 as one {name}"
        yield f"  {words:<40} {each['encoded_mb']:6.1f} MB of base64, {each['grown_mb']:6.1f} MB more at the peak"


def _models(models: Mapping[str, Any]) -> Lines:
    yield "Models that the engine has; seconds a picture, medians"
    yield f"  {'':<28}{'size':>10}{'warm':>9}{'cold':>9}{'cold load':>11}"
    for name, told in models.items():
        if "fault" in told:
            yield f"  {name:<28}{told['size']:>10}  {told['fault']}"
            continue
        warm, cold = told["warm_s"]["median"], told["cold_s"]["median"]
        yield f"  {name:<28}{told['size']:>10}{warm:>9.2f}{cold:>9.2f}{told['load_s']:>11.2f}"
    if not models:
        yield "  none of the catalogue's models"


_SECTIONS: Mapping[str, Callable[[Any], Lines]] = {
    "latency": _latency,
    "throughput": _throughput,
    "compile": _compile,
    "start": _start,
    "memory": _memory,
    "streams": _streams,
    "gpu": _gpu,
    "models": _models,
}


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:>9.2f}"
