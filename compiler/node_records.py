"""The JSON form of node signatures: made from `/object_info`, merged across versions of ComfyUI, completed by facts that
ComfyUI does not report. `schemas/nodes.json` and the nodes learned from a user's engine have this form."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import zip_longest
from typing import Any

from dynamic_inputs import AUTOGROW, DYNAMIC_COMBO, MATCH_TYPE
from errors import shorten

NodeRecord = Mapping[str, Any]
"""{"inputs": {name: …}, "outputs": [types], "output_node": …, "output_matches": […], "more_inputs": …}"""

NodeFacts = Mapping[str, Mapping[str, Any]]
"""node class -> what `/object_info` does not say, as in `schemas/node_facts.yaml`"""

MODEL_SUFFIXES = (
    ".safetensors",
    ".sft",
    ".gguf",
    ".ckpt",
    ".pt",
    ".pt2",
    ".pth",
    ".bin",
    ".onnx",
    ".engine",
    ".pkl",
)
_UPLOAD_FLAGS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload", "file_upload")
_LOADER_WORDS = re.compile(
    "ckpt|checkpoint|unet|vae|clip|lora|gguf|model|control_?net|upscaler", re.IGNORECASE
)
NO_FILE_CHOICES = frozenset({"none", "baked vae", "disabled", "undefined"})
_BOUNDS = ("min", "max", "step")
_FLAGS = ("multiline", "dynamic_prompt", "socket", "control", "optional")
_SEED_NAMES = ("seed", "noise_seed")


# --- /object_info -> records --------------------------------------------------------------------------


def node_record(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The record of one entry of `/object_info`, of any version of ComfyUI; lists of files included.

    Custom nodes may write anything: an input whose description has an unknown form takes any value. Raises ValueError
    if `entry` is not the description of a node at all.
    """
    if not is_node_entry(entry):
        raise ValueError(f"not the description of a node: {shorten(repr(entry), 80)}")
    outputs, matches = _as_list(entry.get("output")), _as_list(entry.get("output_matchtypes"))
    record: dict[str, Any] = {
        "inputs": _input_records(entry.get("input")),
        "outputs": [kind if isinstance(kind, str) else "COMBO" for kind in outputs],
        "output_node": bool(entry.get("output_node")),
    }
    if any(matches):
        record["output_matches"] = [match if isinstance(match, str) else None for match in matches]
    return record


def is_node_entry(entry: Any) -> bool:
    """Whether this is the description of a node as in `/object_info`."""
    return isinstance(entry, Mapping)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _input_records(groups: Any, *, of_option: bool = False) -> dict[str, Any]:
    if not isinstance(groups, Mapping):
        return {}
    return {
        name: _input_record(spec, optional=group == "optional", name="" if of_option else name)
        for group in ("required", "optional")
        if isinstance(specs := groups.get(group), Mapping)
        for name, spec in specs.items()
    }


def _input_record(spec: Any, *, optional: bool, name: str = "") -> dict[str, Any]:
    try:
        record = _typed_record(spec)
        if record["type"] == "INT" and _has_control(name, spec):
            record["control"] = True
        if next(_input_faults("", record), None) is not None:
            record = {"type": "*"}
    except (TypeError, KeyError, ValueError, AttributeError, IndexError, StopIteration, RecursionError):
        record = {"type": "*"}
    if optional:
        record["optional"] = True
    return _flags_last(record, set(record) & set(_FLAGS))


def _has_control(name: str, spec: Any) -> bool:
    """Whether ComfyUI's editor adds a widget for what happens to the value after a run: where `/object_info` says so, and
    for seeds."""
    config = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
    return bool(config.get("control_after_generate", name in _SEED_NAMES))


def _typed_record(spec: Any) -> dict[str, Any]:
    if not isinstance(spec, list) or not isinstance(spec[0], str | list):
        raise TypeError(f"not the description of an input: {spec!r}")
    kind, config = spec[0], (spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {})
    record: dict[str, Any] = {"type": "COMBO" if isinstance(kind, list) else kind}
    if kind == DYNAMIC_COMBO:
        record["options"] = [
            {"key": option["key"], "inputs": _input_records(option["inputs"], of_option=True)}
            for option in config["options"]
        ]
    elif kind == AUTOGROW:
        record |= _grown(config["template"])
    elif kind == MATCH_TYPE:
        template = config["template"]
        record |= {"match": template["template_id"], "types": template["allowed_types"]}
    else:
        record |= _plain_record(kind, config)
    return record


def _plain_record(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    # ComfyUI versions write a list of choices in two ways: [[a, b], {…}] and ["COMBO", {"options": [a, b]}].
    choices = kind if isinstance(kind, list) else config.get("options")
    if isinstance(choices, list | tuple):
        record["choices"] = list(choices)
    if any(config.get(flag) for flag in _UPLOAD_FLAGS):
        record["upload"] = True
    if config.get("multiselect"):
        record["several"] = True
    if kind == "STRING" and config.get("multiline"):
        record["multiline"] = True
    if kind == "STRING" and config.get("dynamicPrompts"):
        record["dynamic_prompt"] = True
    if config.get("forceInput"):
        record["socket"] = True
    is_plain = choices is not None or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    if not is_plain and (config.get("socketless") or "default" in config or "widgetType" in config):
        record["widget"] = True
    bounds = {key: config[key] for key in _BOUNDS if _is_number(config.get(key))}
    return record | ({"default": config["default"]} if "default" in config else {}) | bounds


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _grown(template: Mapping[str, Any]) -> dict[str, Any]:
    groups = {group: entries for group, entries in template["input"].items() if entries}
    ((group, entries),) = list(groups.items())[:1]
    spec = next(iter(entries.values()))
    names = template.get("names") or [f"{template['prefix']}{index}" for index in range(template["max"])]
    return {
        "names": list(names),
        "min": template.get("min", 0),
        "template": _input_record(spec, optional=group == "optional"),
    }


# --- files and facts ----------------------------------------------------------------------------------


def without_files(record: NodeRecord) -> dict[str, Any]:
    """`record` without lists of files, which differ on every machine: `file` in place of the choices of an input that
    lists files of weights or nothing, `folder: input` if it lists uploaded images."""
    return {**record, "inputs": _inputs_without_files(record["inputs"])}


def _inputs_without_files(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _input_without_files(name, entry) for name, entry in inputs.items()}


def _input_without_files(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    entry = dict(entry)
    if entry["type"] == DYNAMIC_COMBO:
        entry["options"] = [
            {**option, "inputs": _inputs_without_files(option["inputs"])} for option in entry["options"]
        ]
    elif entry["type"] == AUTOGROW:
        entry["template"] = _input_without_files(name, entry["template"])
    elif entry.pop("upload", False):
        entry = _as_file(entry, "input")
    elif "choices" in entry and _lists_files(name, entry["choices"]):
        entry = _as_file(entry, None)
    return entry


def _lists_files(name: str, choices: Iterable[Any]) -> bool:
    """Whether the choices are files of weights: some are, or there are none yet."""
    names = [choice.lower() for choice in choices if isinstance(choice, str)]
    if any(choice.endswith(MODEL_SUFFIXES) for choice in names):
        return True
    return not choices or (set(names) <= NO_FILE_CHOICES and bool(_LOADER_WORDS.search(name)))


def _as_file(entry: Mapping[str, Any], folder: str | None) -> dict[str, Any]:
    dropped = ("choices", "choices_in", "default", "file", "also")
    kept = {key: value for key, value in entry.items() if key not in dropped}
    also = [] if folder == "input" else list(dict.fromkeys((*entry.get("also", ()), *_no_files(entry))))
    return {
        **kept,
        **({"file": True} if folder is None else {"folder": folder}),
        **({"also": also} if also else {}),
    }


def _no_files(entry: Mapping[str, Any]) -> list[str]:
    """Choices beside the files that mean something else, such as None or Baked VAE."""
    choices = [choice for choice in entry.get("choices", ()) if isinstance(choice, str)]
    return [choice for choice in choices if choice and not set("./\\") & set(choice)]


def with_facts(
    nodes: Mapping[str, NodeRecord], facts: NodeFacts, *, keeps_choices: bool = False
) -> dict[str, NodeRecord]:
    """`nodes` completed by `facts`: folders of files, inputs whose values the engine does not check, nodes with inputs
    that `/object_info` does not list. Facts about unknown classes and inputs are left out.

    With `keeps_choices`, an input with any value keeps its choices for those who refer to them.
    """
    return {
        name: _with_facts(record, facts[name], keeps_choices) if name in facts else record
        for name, record in nodes.items()
    }


def _with_facts(record: NodeRecord, facts: Mapping[str, Any], keeps_choices: bool) -> NodeRecord:
    inputs = dict(record["inputs"])
    for path, folder in facts.get("files", {}).items():
        _change_input(inputs, path.split("."), partial(_as_file, folder=folder))
    for path in facts.get("any_value", ()):
        _change_input(inputs, path.split("."), _with_any_value if keeps_choices else _as_any_value)
    completed = {**record, "inputs": inputs}
    if facts.get("more_inputs"):
        completed["more_inputs"] = True
    return completed


def _as_any_value(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in entry.items() if key not in ("choices", "choices_in", "file", "folder")
    }


def _with_any_value(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, "any_value": True}


def _change_input(inputs: dict[str, Any], path: list[str], change: Any) -> None:
    """Change the input at `path` in place; `path` leads through the options of dynamic combos."""
    name, rest = path[0], path[1:]
    if name not in inputs:
        return
    if not rest:
        inputs[name] = change(inputs[name])
    elif "options" in inputs[name]:
        options = []
        for option in inputs[name]["options"]:
            inner = dict(option["inputs"])
            _change_input(inner, rest, change)
            options.append({**option, "inputs": inner})
        inputs[name] = {**inputs[name], "options": options}


# --- several versions ---------------------------------------------------------------------------------


def record_nodes(
    known: Mapping[str, Any],
    object_info: Mapping[str, Any],
    *,
    version: str,
    classes: Iterable[str],
    facts: NodeFacts,
) -> dict[str, Any]:
    """`known` (the content of nodes.json) updated with the `object_info` of `version` for these node classes.

    Classes, inputs, options and choices that not all versions have are marked with the versions that have them. A class
    that this version does not have keeps its entry.
    """
    classes = set(classes)
    records = {name: without_files(node_record(object_info[name])) for name in classes if name in object_info}
    document = merge_records(known, with_facts(records, facts), version)
    for name in classes & document["nodes"].keys():
        versions = _Versions(version, known["versions"])
        having = versions.before(known["nodes"][name]) if name in known["nodes"] else set()
        if name in records:
            having.add(version)
        document["nodes"][name] = versions.marked(document["nodes"][name], having)
    return document


def merge_records(
    known: Mapping[str, Any], records: Mapping[str, NodeRecord], version: str
) -> dict[str, Any]:
    """`known` (the content of nodes.json) updated with the records of `version`."""
    versions = sorted({*known["versions"], version}, key=version_key)
    nodes = dict(known["nodes"])
    for name, record in records.items():
        known_versions = known["versions"] if name in nodes else []
        nodes[name] = _merge(nodes.get(name), record, _Versions(version, known_versions))
    return {"versions": versions, "nodes": dict(sorted(nodes.items()))}


def add_learned(known: Mapping[str, Any], learned: Mapping[str, Any]) -> dict[str, Any]:
    """`known` (the content of nodes.json) with the nodes learned from other engines: {"versions": {version: records}}."""
    document = dict(known)
    for version in sorted(learned["versions"], key=version_key):
        document = merge_records(document, learned["versions"][version], version)
    return document


class _Versions:
    """The version that is recorded now, and the others that are known."""

    def __init__(self, version: str, known: Iterable[str]) -> None:
        self.version = version
        self.others = [other for other in known if other != version]
        self.all = {*self.others, version}

    def before(self, entry: Mapping[str, Any]) -> set[str]:
        """The other versions that have `entry`."""
        return {other for other in entry.get("only_in", self.others) if other != self.version}

    def marked(self, entry: Mapping[str, Any], versions: set[str]) -> dict[str, Any]:
        """`entry` marked with the versions that have it."""
        unmarked = {key: value for key, value in entry.items() if key != "only_in"}
        if versions == self.all:
            return unmarked
        return {**unmarked, "only_in": sorted(versions, key=version_key)}


def version_key(version: str) -> tuple[tuple[int, Any], ...]:
    """Sorts versions by their numbers."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in version.split("."))


def _merge(old: NodeRecord | None, new: NodeRecord, versions: _Versions) -> dict[str, Any]:
    if old is None or not versions.others:
        return dict(new)
    merged = {**new, "inputs": _merge_inputs(old["inputs"], new["inputs"], versions)}
    if "only_in" in old:
        merged = versions.marked(merged, {*versions.before(old), versions.version})
    if old["outputs"] != new["outputs"]:
        merged |= _merge_outputs(old, new)
    if "more_inputs" in old:
        merged["more_inputs"] = old["more_inputs"]
    return merged


def _merge_outputs(old: NodeRecord, new: NodeRecord) -> dict[str, Any]:
    """The outputs of both, by place: further ones of either, and both types where they differ."""
    pairs = zip_longest(old["outputs"], new["outputs"])
    merged: dict[str, Any] = {"outputs": [_union(*filter(None, pair)) for pair in pairs]}
    matches = [record.get("output_matches", ()) for record in (new, old)]
    if any(matches):
        merged["output_matches"] = [first or second for first, second in zip_longest(*matches)]
    return merged


def _merge_inputs(old: Mapping[str, Any], new: Mapping[str, Any], versions: _Versions) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for name in dict.fromkeys((*old, *new)):
        having = versions.before(old[name]) if name in old else set()
        if name in new:
            having.add(versions.version)
        if not having:
            continue
        if name in old and name in new:
            entry = _merge_input(old[name], new[name], versions)
        else:
            entry = old[name] if name in old else new[name]
        inputs[name] = versions.marked(entry, having)
    return inputs


def _merge_input(old: Mapping[str, Any], new: Mapping[str, Any], versions: _Versions) -> dict[str, Any]:
    """An input that both have: whatever one of the versions accepts. Only its engine says which version that was."""
    if not versions.before(old):
        return dict(new)
    merged = _with_widest_range(old, new)
    kinds = {old["type"], new["type"]}
    if DYNAMIC_COMBO in kinds and kinds <= {DYNAMIC_COMBO, "COMBO"}:
        merged |= {"type": DYNAMIC_COMBO, "options": _merge_options(_options(old), _options(new), versions)}
        for key in ("choices", "choices_in", "default"):
            merged.pop(key, None)
    elif len(kinds) > 1:
        merged = {key: value for key, value in merged.items() if key not in ("choices", "choices_in")}
        merged |= _both_types(old, new)
    elif new["type"] == AUTOGROW:
        merged["names"] = list(dict.fromkeys((*old["names"], *new["names"])))
        merged["template"] = _merge_input(old["template"], new["template"], versions)
    elif new["type"] == MATCH_TYPE:
        merged["types"] = _union(old["types"], new["types"])
    elif "choices" in old and "choices" in new:
        merged |= _merge_choices(old, new["choices"], versions)
    elif "choices" in new:  # a list of files, or any value, in other versions
        merged = {key: value for key, value in merged.items() if key not in ("choices", "choices_in")}
    if "also" in old or "also" in new:
        merged["also"] = list(dict.fromkeys((*old.get("also", ()), *new.get("also", ()))))
    for key in ("file", "folder", "widget"):
        if key in old and not ({"choices", "folder"} & set(merged)):
            merged[key] = old[key]
    if "folder" in merged:
        merged.pop("file", None)
    return _flags_last(merged, {key for key in _FLAGS if old.get(key) or new.get(key)})


def _flags_last(record: Mapping[str, Any], flags: set[str]) -> dict[str, Any]:
    """`record` with these flags, in an order that does not depend on which version was recorded first."""
    others = {key: value for key, value in record.items() if key not in _FLAGS}
    return {**others, **{key: True for key in _FLAGS if key in flags}}


def _with_widest_range(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new` with the widest range of both; a bound that one of them does not have is left out."""
    merged = dict(new)
    for key, widest in {"min": min, "max": max}.items():
        if key in old and key in new:
            merged[key] = widest(old[key], new[key])
        else:
            merged.pop(key, None)
    return merged


def _both_types(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [entry.get("types", entry["type"]) for entry in (old, new)]
    if MATCH_TYPE in (old["type"], new["type"]):
        match = next(entry["match"] for entry in (new, old) if entry["type"] == MATCH_TYPE)
        return {"type": MATCH_TYPE, "match": match, "types": _union(*kinds)}
    return {"type": _union(*kinds), **({"widget": True} if old.get("widget") or new.get("widget") else {})}


def _union(*kinds: str) -> str:
    """Types with commas in between; `*` if one of them is any type."""
    names = dict.fromkeys(name for kind in kinds for name in kind.split(","))
    return "*" if "*" in names else ",".join(names)


def _options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a dynamic combo by key; those of an ordinary combo have no inputs."""
    if "options" in entry:
        return {option["key"]: option for option in entry["options"]}
    marks = entry.get("choices_in", {})
    return {
        choice: {"key": choice, "inputs": {}, **({"only_in": marks[choice]} if choice in marks else {})}
        for choice in entry.get("choices", ())
        if isinstance(choice, str)
    }


def _merge_options(
    old: Mapping[str, Any], new: Mapping[str, Any], versions: _Versions
) -> list[dict[str, Any]]:
    options = []
    for key in dict.fromkeys((*old, *new)):
        having = versions.before(old[key]) if key in old else set()
        if key in new:
            having.add(versions.version)
        if not having:
            continue
        if key in old and key in new and versions.before(old[key]):
            inputs = _merge_inputs(old[key]["inputs"], new[key]["inputs"], versions)
        else:
            inputs = (new if key in new else old)[key]["inputs"]
        options.append(versions.marked({"key": key, "inputs": inputs}, having))
    return options


def _merge_choices(old: Mapping[str, Any], new_choices: list[Any], versions: _Versions) -> dict[str, Any]:
    # Custom nodes have choices of any JSON type, also lists and objects: they are told apart by their JSON.
    choices = {_choice_key(choice): choice for choice in (*old["choices"], *new_choices)}
    versions_of: dict[str, set[str]] = {
        _choice_key(choice): {
            v for v in old.get("choices_in", {}).get(str(choice), versions.others) if v != versions.version
        }
        for choice in old["choices"]
    }
    for choice in new_choices:
        versions_of.setdefault(_choice_key(choice), set()).add(versions.version)
    choices_in = {
        str(choices[key]): sorted(having, key=version_key)
        for key, having in versions_of.items()
        if having and having != versions.all
    }
    merged: dict[str, Any] = {"choices": [choices[key] for key, having in versions_of.items() if having]}
    if choices_in:
        merged["choices_in"] = choices_in
    return merged


def _choice_key(choice: Any) -> str:
    return json.dumps(choice, sort_keys=True)


# --- the form of records that were kept -----------------------------------------------------------------

_MAX_DEPTH = 10
"""of dynamic combos and auto-grown inputs inside each other"""


def record_faults(name: str, record: Any) -> Iterator[str]:
    """What is wrong with the form of one record, as text that begins with the place. A record without faults can be
    merged and parsed."""
    if not isinstance(record, dict):
        yield f"{name} is not an object"
        return
    yield from _inputs_faults(name, record.get("inputs"), 0)
    if not _is_texts(record.get("outputs")):
        yield f"{name}.outputs is not a list of texts"
    matches = record.get("output_matches", [])
    if not isinstance(matches, list) or not all(match is None or isinstance(match, str) for match in matches):
        yield f"{name}.output_matches is not a list of texts"
    if not _is_texts(record.get("only_in", [])):
        yield f"{name}.only_in is not a list of texts"
    for key in ("output_node", "more_inputs"):
        if not isinstance(record.get(key, False), bool):
            yield f"{name}.{key} is neither true nor false"


def _inputs_faults(place: str, inputs: Any, depth: int) -> Iterator[str]:
    if not isinstance(inputs, dict):
        yield f"{place}.inputs is not an object"
    elif depth > _MAX_DEPTH:
        yield f"{place}.inputs is nested too deeply"
    else:
        for name, entry in inputs.items():
            yield from _input_faults(f"{place}.{name}", entry, depth)


_INPUT_FORMS: Mapping[str, type] = {
    "optional": bool,
    "file": bool,
    "upload": bool,
    "widget": bool,
    "several": bool,
    "socket": bool,
    "control": bool,
    "multiline": bool,
    "dynamic_prompt": bool,
    "folder": str,
    "choices": list,
    "choices_in": dict,
}


def _input_faults(place: str, entry: Any, depth: int = 0) -> Iterator[str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        yield f"{place} is not an object with a type"
        return
    for key, form in _INPUT_FORMS.items():
        if key in entry and not isinstance(entry[key], form):
            yield f"{place}.{key} has the wrong type"
    for key in _BOUNDS:
        if key in entry and not _is_number(entry[key]):
            yield f"{place}.{key} is not a number"
    marks = entry.get("choices_in")
    for key, texts in (
        *((key, entry.get(key, [])) for key in ("also", "only_in", "names")),
        *(("choices_in", versions) for versions in (marks.values() if isinstance(marks, dict) else ())),
    ):
        if not _is_texts(texts):
            yield f"{place}.{key} is not a list of texts"
    if entry["type"] == DYNAMIC_COMBO:
        yield from _options_faults(place, entry.get("options"), depth)
    elif entry["type"] == AUTOGROW:
        if not _is_texts(entry.get("names")) or type(entry.get("min")) is not int:
            yield f"{place} does not have `names` and a number `min`"
        yield from _input_faults(f"{place}.template", entry.get("template"), depth + 1)
    elif entry["type"] == MATCH_TYPE and not (
        isinstance(entry.get("types"), str) and isinstance(entry.get("match"), str)
    ):
        yield f"{place} does not have `types` and a `match`"


def _options_faults(place: str, options: Any, depth: int) -> Iterator[str]:
    if not isinstance(options, list):
        yield f"{place}.options is not a list"
        return
    for option in options:
        if not isinstance(option, dict) or not isinstance(option.get("key"), str):
            yield f"{place}.options has an entry without a key"
        elif not _is_texts(option.get("only_in", [])):
            yield f"{place}.options.only_in is not a list of texts"
        else:
            yield from _inputs_faults(f"{place}.{option['key']}", option.get("inputs"), depth + 1)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
