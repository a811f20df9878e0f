"""What `easel setup` proposes, and the file that it writes. Pure: values in, values out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from commands.machine import Machine, same_place
from detection import ComfyuiPlace, Service
from engine.selection import PROBE_URLS
from loopback import is_loopback

LlmUse = Literal["share", "forward", "skip"]
"""share: its models are unloaded for a picture. forward: its chats go through Easel. skip: it is left alone."""
_SECTIONS = {"llm.stacks": "llm", "llm.upstreams": "llm"}


@dataclass(frozen=True)
class LlmPlan:
    """What is to be done with one LLM server, and why: the rest of a sentence about it."""

    service: Service
    use: LlmUse
    reason: str


@dataclass(frozen=True)
class Plan:
    """What the file is to say. `comfyui`: the one that is used, None if none was found; `engine_url`: empty if Easel finds
    it without a setting; `place`: where it has its models; `port`: None for the usual one; `port_reason`: who has that."""

    comfyui: Service | None = None
    engine_url: str = ""
    place: ComfyuiPlace | None = None
    port: int | None = None
    port_reason: str = ""
    llms: tuple[LlmPlan, ...] = ()

    def with_llm(self, position: int, use: LlmUse) -> Plan:
        """The plan with another use of one LLM server."""
        changed = replace(self.llms[position], use=use)
        return replace(self, llms=(*self.llms[:position], changed, *self.llms[position + 1 :]))


@dataclass(frozen=True)
class Entry:
    """One setting of the file. `name`: with dots; of `llm.stacks` and `llm.upstreams` one entry for each server."""

    name: str
    value: Any
    reason: str


def found_comfyuis(machine: Machine, configured_url: str = "") -> tuple[Service, ...]:
    """The ComfyUIs that answer; first the configured one, then those where Easel looks without a setting, then
    those with a GPU."""
    found = [service for service in machine.services if service.kind == "comfyui"]
    order = [configured_url, *PROBE_URLS]

    def rank(service: Service) -> int:
        return next((i for i, url in enumerate(order) if url and same_place(url, service.url)), len(order))

    return tuple(sorted(found, key=lambda service: (rank(service), not _has_gpu(service))))


def _has_gpu(service: Service) -> bool:
    return service.comfyui is not None and service.comfyui.gpu is not None


def shares_gpu(machine: Machine, comfyui: Service | None) -> bool:
    """Whether LLM servers of this machine and ComfyUI use one GPU, as far as can be seen."""
    if comfyui is None or comfyui.comfyui is None:
        return bool(machine.gpus)
    return _has_gpu(comfyui) and is_loopback(urlsplit(comfyui.url).hostname)


def needed_url(comfyui: Service | None, configured_url: str = "") -> str:
    """The `engine.url` to write; empty if Easel finds the ComfyUI without it. `configured_url`: what the settings say now;
    it stays if no ComfyUI was found at all."""
    if comfyui is None:
        return configured_url
    if configured_url:
        return configured_url if same_place(comfyui.url, configured_url) else comfyui.url
    return "" if any(same_place(comfyui.url, url) for url in PROBE_URLS) else comfyui.url


def llm_plans(machine: Machine, comfyui: Service | None) -> tuple[LlmPlan, ...]:
    """What is proposed for each LLM server that answers. What is unknown is none."""
    is_shared = shares_gpu(machine, comfyui)
    count = len(machine.gpus)
    return tuple(_llm_plan(service, is_shared, count) for service in machine.services if service.is_llm)


def _llm_plan(service: Service, is_shared: bool, gpu_count: int) -> LlmPlan:
    if service.needs_key:
        return LlmPlan(service, "skip", "wants a key")
    if not is_loopback(urlsplit(service.url).hostname):
        return LlmPlan(service, "forward", "is on another machine")
    if not is_shared:
        return LlmPlan(service, "forward", "does not share a GPU with ComfyUI, as far as can be seen")
    if not service.can_unload:
        return LlmPlan(
            service, "forward", f"keeps its GPU memory while pictures are drawn: {service.why_not}"
        )
    gpu = f"may use ComfyUI's GPU (there are {gpu_count})" if gpu_count > 1 else "uses ComfyUI's GPU"
    return LlmPlan(service, "share", f"{gpu}: its models are unloaded for a picture and loaded again")


def entries(plan: Plan) -> tuple[Entry, ...]:
    """The settings that the plan needs."""
    return tuple(_entries(plan))


def _entries(plan: Plan) -> Iterator[Entry]:
    if plan.port is not None:
        yield Entry("port", plan.port, plan.port_reason)
    if plan.engine_url:
        answers = f"{plan.comfyui.title} answers here." if plan.comfyui else "No ComfyUI answered here yet."
        yield Entry("engine.url", plan.engine_url, answers)
    if plan.place is not None:
        reason = f"`easel pull-model` puts models there ({plan.place.source})."
        yield Entry("engine.models_dir", str(plan.place.models_dir), reason)
        if plan.place.extra_model_paths is not None:
            reason = "ComfyUI was started with this file of further folders."
            yield Entry("engine.extra_model_paths", str(plan.place.extra_model_paths), reason)
    names = _names([llm.service for llm in plan.llms if llm.use != "skip"])
    for use, setting, key in (("share", "llm.stacks", "driver"), ("forward", "llm.upstreams", "preset")):
        for llm in plan.llms:
            if llm.use == use:
                name = names[llm.service.url]
                value = {key: llm.service.kind, **({"name": name} if name else {}), "url": llm.service.url}
                yield Entry(setting, value, f"{llm.service.title} {llm.reason}.")


def _names(services: Sequence[Service]) -> Mapping[str, str]:
    """URL -> a name, for the second and further servers of a kind; names must differ."""
    first: dict[str, str] = {}
    return {
        service.url: ""
        if first.setdefault(service.kind, service.url) == service.url
        else f"{service.kind}-{urlsplit(service.url).port or 80}"
        for service in services
    }


def differences(wanted: Iterable[Entry], values: Mapping[str, Any]) -> tuple[str, ...]:
    """What settings with these `values` lack, as lines of a diff."""
    lines: list[str] = []
    servers = [*values["llm.stacks"], *values["llm.upstreams"]]
    for entry in wanted:
        if entry.name in _SECTIONS:
            if not any(same_place(str(each.get("url", "")), entry.value["url"]) for each in servers):
                lines += [f"+ {entry.name}: {_flow(entry.value)}   # {entry.reason}"]
        elif values[entry.name] != entry.value:
            if values[entry.name]:
                lines.append(f"- {entry.name}: {_scalar(values[entry.name])}")
            lines.append(f"+ {entry.name}: {_scalar(entry.value)}   # {entry.reason}")
    return tuple(lines)


# --- the file ---------------------------------------------------------------------------------------------


def file_text(plan: Plan, *, date: str, example: str) -> str:
    """easel.yaml. `example`: the file that lists all settings."""
    parts = [
        f"# Settings of Easel, written by `easel setup` on {date}. What is not here has its default.\n"
        f"# All settings: docs/settings.md, and {example}.\n"
        "# `easel doctor` checks this file; a running server reads it when it starts again.\n"
    ]
    wanted = entries(plan)
    top = [entry for entry in wanted if "." not in entry.name]
    parts += [f"{_comment(entry.reason)}{entry.name}: {_scalar(entry.value)}\n" for entry in top]
    if engine := _engine_part(plan, wanted):
        parts.append(engine)
    if llm := _llm_part(plan, wanted):
        parts.append(llm)
    return "\n".join(parts)


def _engine_part(plan: Plan, wanted: Sequence[Entry]) -> str:
    lines = [
        f"{_comment(entry.reason, '  ')}  {entry.name.partition('.')[2]}: {_scalar(entry.value)}\n"
        for entry in wanted
        if entry.name.startswith("engine.")
    ]
    note = ""
    if plan.comfyui and not plan.engine_url:
        note = f"# {plan.comfyui.title} answers at {plan.comfyui.url}, where Easel looks without a setting.\n"
    elif not plan.engine_url:
        note = "# Until a ComfyUI answers at port 8188 or 8000, sketches are drawn; one elsewhere needs:\n"
        note += '# engine:\n#   url: "http://HOST:8188"\n'
    return note + ("engine:\n" + "".join(lines) if lines else "")


def _llm_part(plan: Plan, wanted: Sequence[Entry]) -> str:
    text = ""
    for setting in ("stacks", "upstreams"):
        members = [entry for entry in wanted if entry.name == f"llm.{setting}"]
        if members:
            text += f"  {setting}:\n"
        for entry in members:
            keys = [f"{key}: {_scalar(value)}" for key, value in entry.value.items()]
            text += (
                _comment(entry.reason, "    ")
                + f"    - {keys[0]}\n"
                + "".join(f"      {key}\n" for key in keys[1:])
            )
    keyed = [llm.service for llm in plan.llms if llm.service.needs_key]
    notes = "".join(map(_key_note, keyed))
    return notes + (f"llm:\n{text}" if text else "")


def _key_note(service: Service) -> str:
    """The lines for a server whose key is not known here: without the variable, the file would not be valid."""
    variable = service.kind.upper().replace("-", "_") + "_KEY"
    entry = _flow({"preset": service.kind, "url": service.url, "key_env": variable})
    return (
        _comment(f"{service.title} at {service.url} wants a key. Set {variable} to it, and add:")
        + f"# llm: {{upstreams: [{entry}]}}\n"
    )


def _comment(text: str, indent: str = "") -> str:
    # What a server says of itself is in it: it must stay a comment.
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return f"{indent}# {line}\n"


def _scalar(value: Any) -> str:
    """As YAML; a text in quotes, as JSON writes it. What cannot be printed is escaped: YAML folds some line separators,
    refuses other characters, and a terminal obeys them."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(
        each if each.isprintable() or _is_no_unicode(each) else _escaped(ord(each)) for each in text
    )


def _is_no_unicode(character: str) -> bool:
    """Whether it stands for a byte of a path that is not UTF-8: such a path is refused, not escaped."""
    return "\ud800" <= character <= "\udfff"


def _escaped(code: int) -> str:
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _flow(value: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_scalar(each)}" for key, each in value.items()) + "}"
