"""The results as text: the targets first, then each measurement, with medians and ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench.targets import TARGETS

Lines = Iterator[str]


def report(results: Mapping[str, Any]) -> str:
    """The report on everything that was measured."""
    lines = ["", "Easel's benchmark", *_machine(results["machine"])]
    targets = [line for target in TARGETS if (line := target.line(results))]
    lines += ["", "Targets", *targets] if targets else []
    for name, section in _SECTIONS.items():
        if name in results:
            lines += ["", *section(results[name])]
    return "\n".join(lines)


def _machine(machine: Mapping[str, Any]) -> Lines:
    for name, value in machine.items():
        yield f"  {name:<10} {value}"


def _latency(latency: Mapping[str, Any]) -> Lines:
    count = len(latency["direct"]["values"])
    yield f"One 64 px picture after another ({count} for each client, in rotation); ms"
    yield f"  {'':<24}{'median':>9}{'added':>9}{'ratio':>9}{'p95':>9}"
    direct = latency["direct"]
    yield f"  {'direct client':<24}{_ms(direct['median'])}{'':>9}{'':>9}{_ms(direct['p95'])}"
    for name, title in (("b64_json", "gateway, b64_json"), ("url_and_get", "gateway, url + GET")):
        gateway = latency[name]
        ratio = f"{gateway['ratio']:>8.2f}x"
        yield f"  {title:<24}{_ms(gateway['median'])}{_ms(gateway['added_s'])}{ratio}{_ms(gateway['p95'])}"
    yield ""
    yield from _stages(latency["stages"]["gateway"], latency["stages"]["direct"])


_STAGES = (
    ("compile", "compile_s"),
    ("fit the graph, POST /prompt", "submit_s"),
    ("the engine's work: queued + run", "engine_s"),
    ("fetch: GET /view", "fetch_s"),
    ("finish: metadata, format, store", "finish_s"),
    ("the rest: HTTP, JSON, base64", "http_s"),
)


def _stages(gateway: Mapping[str, float], direct: Mapping[str, float]) -> Lines:
    yield "Time of each stage of one picture (b64_json); medians, ms"
    yield f"  {'':<34}{'gateway':>9}{'direct':>9}"
    for title, name in _STAGES:
        direct_ms = _ms(direct[name]) if name in direct else ""
        yield f"  {title:<34}{_ms(gateway[name])}{direct_ms}"
    around = gateway["around_s"], direct["around_s"]
    added = _ms(around[0] - around[1])
    yield f"  {'everything but the engine':<34}{_ms(around[0])}{_ms(around[1])}{added} added"
    queued, run = gateway["queued_s"] * 1000, gateway["run_s"] * 1000
    yield f"  the engine's work through the gateway: {queued:.2f} queued, {run:.2f} run"


def _throughput(entries: list[Mapping[str, Any]]) -> Lines:
    yield "Throughput, pictures/s (medians of rounds, routes in rotation); CPU in ms per picture"
    if any(entry["render_ms"] == 0 for entry in entries):
        yield "  An instant render mostly measures how clients, gateway and engine compete for the CPU, for example"
        yield "  on two shared cores. The simulated render is the relevant case."
    headings = (
        "ratio",
        "of rounds",
        "gateway",
        "direct",
        "CPU: gateway",
        "engine",
        "its client",
        "direct client",
    )
    yield f"  {'render':<11}{'clients':>7}" + "".join(f"{heading:>14}" for heading in headings)
    for entry in entries:
        gateway, direct = entry["gateway"], entry["direct"]
        cpu = gateway["cpu_s_per_picture"]
        cpus = [cpu["gateway"], cpu.get("engine"), cpu["client"], direct["cpu_s_per_picture"]["client"]]
        lowest, highest = min(entry["ratios"]), max(entry["ratios"])
        cells = [f"{entry['ratio']:.2f}x", f"{lowest:.2f}..{highest:.2f}"]
        cells += [f"{gateway['pictures_per_s']:.1f}", f"{direct['pictures_per_s']:.1f}"]
        cells += [_ms(seconds).strip() if seconds is not None else "?" for seconds in cpus]
        yield f"  {_render(entry['render_ms']):<11}{entry['clients']:>7}" + "".join(
            f"{cell:>14}" for cell in cells
        )


def _render(render_ms: float | None) -> str:
    if render_ms is None:
        return "real"
    return f"{render_ms:g} ms" if render_ms else "instant"


def _compile(compiled: Mapping[str, Any]) -> Lines:
    yield "Compiling"
    for model, times in compiled["per_model_s"].items():
        yield f"  {model:<34}{_ms(times['median'])} ms   p95 {_ms(times['p95']).strip()} ms"
    catalogue = compiled["catalogue"]
    title = f"catalogue of {catalogue['models']:,} models"
    yield f"  {title:<34}{catalogue['load_s']['median']:>9.2f} s    read, parsed, checked, each model compiled"


def _start(start: Mapping[str, Any]) -> Lines:
    yield f"Start of gunicorn with two workers ({len(start['first_answer_s']['values'])} starts)"
    for name, title in (("first_answer_s", "first response"), ("first_picture_s", "first picture")):
        times = start[name]
        yield f"  {title:<24}{times['median']:>9.2f} s    slowest {max(times['values']):.2f} s"


def _memory(memory: Mapping[str, Any]) -> Lines:
    yield "Memory after the run, MB (PSS: shared memory divided by its number of users)"
    processes = [(f"worker {index + 1}", worker) for index, worker in enumerate(memory["workers"])]
    processes += [("sketch engine", memory["engine"])] if memory["engine"] else []
    for name, usage in processes:
        yield f"  {name:<24}RSS {usage['rss_mb']:6.1f}   PSS {usage['pss_mb']:6.1f}"
    if not processes:
        yield "  not available on this system"


def _gpu(gpu: Mapping[str, Any]) -> Lines:
    rows = (
        ("an uncontended lease", gpu["lease_s"]),
        ("a switchover between instant tenants", gpu["switch_s"]),
        ("GET /api/comfyui/status, 50 clients poll", gpu["status_s"]),
    )
    yield "Sharing the GPU; ms                              median      p95"
    for title, times in rows:
        yield f"  {title:<44} {_ms(times['median']):>8} {_ms(times['p95']):>8}"


def _streams(streams: Mapping[str, Any]) -> Lines:
    direct, gateway = streams["direct_s"], streams["gateway_s"]
    ratio = gateway["median"] / direct["median"]
    yield "Streams: from the request to the first reported step; ms         median      p95"
    yield f"  {'direct client':<58} {_ms(direct['median'])} {_ms(direct['p95'])}"
    yield f"  {'gateway':<58} {_ms(gateway['median'])} {_ms(gateway['p95'])}   {ratio:.2f}x"
    for name, entry in streams.get("large", {}).items():
        title = f"2048x2048 pictures in one {name}"
        yield f"  {title:<40} {entry['encoded_mb']:6.1f} MB of base64, peak memory +{entry['grown_mb']:.1f} MB"


def _models(models: Mapping[str, Any]) -> Lines:
    yield "Models that the engine has; seconds per picture, medians"
    yield f"  {'':<28}{'size':>10}{'warm':>9}{'cold':>9}{'cold load':>11}"
    for name, result in models.items():
        if "error" in result:
            yield f"  {name:<28}{result['size']:>10}  {result['error']}"
            continue
        warm, cold = result["warm_s"]["median"], result["cold_s"]["median"]
        yield f"  {name:<28}{result['size']:>10}{warm:>9.2f}{cold:>9.2f}{result['load_s']:>11.2f}"
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
