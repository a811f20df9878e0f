"""The results as text: the targets first, then each measurement, with medians and ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    yield "One picture after another, routes in random order; medians, ms. Ratio: to the direct client with SaveImage"
    headings = ("median", "added", "ratio", "p95", "pictures", "PNG, kB", "wire, kB")
    yield f"  {'size':<9}{'route':<20}" + "".join(f"{heading:>10}" for heading in headings)
    for size, entry in latency.items():
        for name, times in entry["routes"].items():
            pixels = entry["pixels"].get(name, {})
            cells = [_ms(times["median"]), _ms(times["added_s"]), f"{times['ratio']:.2f}x", _ms(times["p95"])]
            cells += [str(len(times["values"])), _kb(pixels.get("png_bytes")), _kb(pixels.get("wire_bytes"))]
            note = "" if pixels.get("same_pixels", True) else "  other pixels"
            yield f"  {size:>4} px  {name:<20}" + "".join(f"{cell.strip():>10}" for cell in cells) + note
    yield "  Every route of this engine gave the same pixels. Wire: what the client sent and received for a picture."
    yield ""
    yield from _stages({size: entry["stages"] for size, entry in latency.items()})


_STAGES = (
    ("compile", "compile_s"),
    ("fit the graph, POST /prompt", "submit_s"),
    ("queued until the engine starts", "queued_s"),
    ("run in the engine", "run_s"),
    ("both: the engine's work", "engine_s"),
    ("fetch", "fetch_s"),
    ("finish: metadata, format, store", "finish_s"),
    ("the rest: HTTP, JSON, base64", "http_s"),
    ("everything but the engine", "around_s"),
)


def _stages(sizes: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Lines:
    yield "Time of each stage of one picture; medians, ms"
    yield f"  {'':<34}" + "".join(f"{f'{size} px':>20}" for size in sizes)
    yield f"  {'':<34}" + f"{'gateway':>12}{'direct':>8}" * len(sizes)
    for title, name in _STAGES:
        row = ""
        for stages in sizes.values():
            gateway, direct = stages["gateway"][name], stages["direct"].get(name)
            row += f"{_ms(gateway).strip():>12}{'' if direct is None else _ms(direct).strip():>8}"
        yield f"  {title:<34}{row}"


def _throughput(entries: list[Mapping[str, Any]]) -> Lines:
    yield "Pictures per second (medians of rounds, routes in rotation), p95 of a picture and CPU per picture in ms"
    if any(entry["render_ms"] == 0 for entry in entries):
        yield "  An instant render mostly measures how clients, gateway and engine compete for the CPU."
    headings = ("pictures/s", "ratio", "of rounds", "p95", "CPU: gateway", "engine", "client")
    title = f"  {'size':<9}{'render':<9}{'clients':<9}{'route':<20}"
    yield title + "".join(f"{heading:>13}" for heading in headings)
    for entry in entries:
        start = f"  {entry['size']:>4} px  {_render(entry['render_ms']):<9}{entry['clients']:>7}  "
        if "routes" not in entry:
            yield f"{start}left out: about {entry['expected_s']:.0f} s; --sizes and --clients measure it"
            continue
        for name, route in entry["routes"].items():
            cells = [f"{route['pictures_per_s']:.1f}", f"{route['ratio']:.2f}x"]
            cells += [f"{min(route['ratios']):.2f}..{max(route['ratios']):.2f}", _ms(route["p95_s"])]
            cpu = route["cpu_s_per_picture"]
            cells += [_ms(cpu[each]) if each in cpu else "?" for each in ("gateway", "engine", "client")]
            yield f"{start}{name:<20}" + "".join(f"{cell.strip():>13}" for cell in cells)


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
    if shipped := compiled.get("shipped"):  # older results have none
        title = f"shipped catalogue, {shipped['models']} models"
        prove_s, proved = shipped["prove_s"]["median"], shipped.get("proved", shipped["models"])
        without = "its proofs" if proved == shipped["models"] else f"the proofs of {proved} models"
        yield f"  {title:<34}{shipped['load_s']['median']:>9.2f} s    {prove_s:.1f} s if {without} were not kept"
    if own := compiled.get("own_folder"):  # older results have none
        title = f"own folder with {own['files']:,} files"
        yield f"  {title:<34}{own['load_s']['median']:>9.2f} s    with the project's own catalogue"


def _start(start: Mapping[str, Any]) -> Lines:
    yield f"Start of gunicorn with two workers ({len(start['first_answer_s']['values'])} starts)"
    for name, title in (("first_answer_s", "first response"), ("first_picture_s", "first picture")):
        times = start[name]
        yield f"  {title:<24}{times['median']:>9.2f} s    slowest {max(times['values']):.2f} s"


def _memory(memory: Mapping[str, Any]) -> Lines:
    yield "Memory, MB (PSS: shared memory divided by its number of users)"
    title = f"after {memory['pictures']} of {memory['size']} px"
    groups = ((title, memory["workers"]), ("after this whole run", memory["after_the_run"]))
    rows = [
        (f"worker {index + 1}, {when}", worker)
        for when, workers in groups
        for index, worker in enumerate(workers)
    ]
    rows += [("engine", memory["engine"])] if memory["engine"] else []
    for name, usage in rows:
        yield f"  {name:<34}RSS {usage['rss_mb']:7.1f}   PSS {usage['pss_mb']:7.1f}"
    if not rows:
        yield "  not available on this system"


def _conversation(conversation: Mapping[str, Mapping[str, Any]]) -> Lines:
    yield "LLM requests: streams of a small LLM server, asked directly, through Easel, and with a lease on the GPU; medians"
    yield f"  {'':<52}" + "".join(f"{name:>17}" for name in conversation["one"])
    for title, name, key, show in _CONVERSATION_ROWS:
        routes = [conversation[name].get(route, {}) for route in conversation["one"]]
        cells = [show(route[key]).strip() if key in route else "" for route in routes]
        if any(cells):
            yield f"  {title:<52}" + "".join(f"{cell:>17}" for cell in cells)


def _gpu(gpu: Mapping[str, Any]) -> Lines:
    rows = (
        ("an uncontended lease", gpu["lease_s"]),
        ("a switchover between instant tenants", gpu["switch_s"]),
        ("GET /api/comfyui/status, 50 clients poll", gpu["status_s"]),
    )
    yield "Sharing the GPU; ms                              median      p95"
    for title, times in rows:
        yield f"  {title:<44} {_ms(times['median']):>8} {_ms(times['p95']):>8}"


def _keys(keys: Mapping[str, Any]) -> Lines:
    rows = (
        ("without keys", keys["none_s"]),
        ("a key with all limits", keys["one_s"]),
        (f"the same among {keys['keys']:,} keys", keys["many_s"]),
    )
    yield "Who sent a request, and counting it and its picture; ms    median      p95"
    for title, times in rows:
        yield f"  {title:<54} {times['median'] * 1000:>8.4f} {times['p95'] * 1000:>8.4f}"


def _engines(entries: Sequence[Mapping[str, Any]]) -> Lines:
    if not entries:
        yield "Several engines: not measured with a real one"
        return
    yield f"Several sketch engines, a render of {entries[0]['render_ms']:.0f} ms"
    yield f"  {'engines':>7} {'clients':>8} {'pictures/s':>11} {'of N times one':>15} {'CPU in use':>11}"
    for entry in entries:
        yield (
            f"  {entry['engines']:>7} {entry['clients']:>8} {entry['pictures_per_s']:>11.2f} {entry['share']:>14.2f}x"
            f" {entry['busy']:>10.0%}"
        )


def _streams(streams: Mapping[str, Any]) -> Lines:
    if not streams:
        yield "Streams: not measured, because the engine has no checkpoint"
        return
    direct, gateway, ratio = streams["direct_s"], streams["gateway_s"], streams["ratio"]
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


_CONVERSATION_ROWS: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("first token, one stream, ms", "one", "median", lambda s: f"{s * 1000:.2f}"),
    ("  later than direct, ms", "one", "added_s", lambda s: f"{s * 1000:.2f}"),
    ("first token beside 31 other streams, ms", "many", "median", lambda s: f"{s * 1000:.2f}"),
    ("  later than direct, ms", "many", "added_s", lambda s: f"{s * 1000:.2f}"),
    ("32 streams at 50 tokens/s that begin together: tokens/s", "load", "tokens_per_s", "{:.0f}".format),
    ("  relative to direct", "load", "ratio", "{:.3f}x".format),
    ("  first token, ms", "load", "first_token_s", lambda s: f"{s * 1000:.1f}"),
    ("  CPU of the gateway for 1,000 chunks, ms", "load", "cpu_s_per_1000", lambda s: f"{s * 1000:.0f}"),
    ("/health beside 128 streams and 32 pictures, ms", "busy", "median", lambda s: f"{s * 1000:.1f}"),
    ("  p95, ms", "busy", "p95", lambda s: f"{s * 1000:.1f}"),
    ("  longest, ms", "busy", "max", lambda s: f"{s * 1000:.1f}"),
    ("100,000 tokens as fast as possible, s", "long", "seconds", "{:.2f}".format),
    ("  CPU of the gateway, s", "long", "cpu_s", "{:.2f}".format),
    ("  memory: RSS afterwards, MB more", "long", "grown_mb", "{:.1f}".format),
    ("  memory: highest RSS, MB more", "long", "peak_mb", "{:.1f}".format),
    ("  memory: most without pages of files, MB more", "long", "anonymous_mb", "{:.1f}".format),
    ("upload of 100 MB, s", "upload", "seconds", "{:.2f}".format),
    ("  CPU of the gateway, s", "upload", "cpu_s", "{:.2f}".format),
    ("  memory: RSS afterwards, MB more", "upload", "grown_mb", "{:.1f}".format),
    ("  memory: highest RSS, MB more", "upload", "peak_mb", "{:.1f}".format),
    ("  memory: most without pages of files, MB more", "upload", "anonymous_mb", "{:.1f}".format),
)


_SECTIONS: Mapping[str, Callable[[Any], Lines]] = {
    "latency": _latency,
    "throughput": _throughput,
    "compile": _compile,
    "start": _start,
    "memory": _memory,
    "streams": _streams,
    "gpu": _gpu,
    "conversation": _conversation,
    "keys": _keys,
    "engines": _engines,
    "models": _models,
}


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:>9.2f}"


def _kb(count: int | None) -> str:
    return "" if count is None else f"{count / 1000:.1f}"
