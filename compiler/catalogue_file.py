"""Parses catalogue.yaml: checks it against its schema, then for consistency with itself, the templates and the node
signatures. Reports all errors together, with file, line and path."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator

from compiler.catalogue import (
    CATALOGUE_FILE,
    DEFAULT_LIMIT_BATCH,
    DEFAULT_LIMIT_N,
    Catalogue,
    ConditionalSchema,
    File,
    Input,
    Licence,
    Lora,
    Model,
    Stage,
    ValueMapping,
    Workflow,
)
from compiler.catalogue_checks import (
    choices_of,
    consistency_errors,
    lora_errors,
    missing_template,
    unknown_choices,
)
from compiler.documented_nodes import with_documented
from compiler.engine_files import with_slashes
from compiler.named_entries import NamedEntries
from compiler.node_records import NodeFacts, add_learned, record_faults, with_facts
from compiler.render import TemplateRenderer
from compiler.signatures import Signatures, parse_signatures
from compiler.size import Size, SizeRule
from compiler.sources import TEMPLATE_SUFFIX, SourcePaths, Sources, read_learned_nodes
from compiler.stages import stage_errors
from compiler.values import TASKS, ImageCount
from compiler.versions import Needs
from errors import CatalogueInvalid, shorten
from schemas import LocatedError, is_valid, lines_of, located_errors, read_yaml

MAX_ERRORS = 20
"""further errors are only counted"""


def parse_catalogue(sources: Sources) -> Catalogue:
    """Check and parse the catalogue. Raises CatalogueInvalid with every error found.

    Does not render templates; `compiler.load_catalogue` compiles every model as well.
    """
    document = _checked_document(sources)
    nodes = known_nodes(sources, document.get("nodes", {}))
    signatures = parse_signatures(nodes)
    workflows = {
        name: new_workflow(name, entry, signatures, sources.templates)
        for name, entry in document["workflows"].items()
    }
    named = NamedEntries.of(document)
    entries = {section: document.get(section, {}) for section in ("models", "loras", "stages")}
    if errors := [
        error
        for section, group in entries.items()
        for name, entry in group.items()
        for error in named.errors(section, name, entry)
    ]:
        raise _invalid(sources, errors)
    models = {
        name: new_model(name, named.expanded(entry), workflows) for name, entry in entries["models"].items()
    }
    loras = {name: new_lora(name, named.expanded(entry)) for name, entry in entries["loras"].items()}
    found = (
        *consistency_errors(document, workflows, models, sources, signatures),
        *lora_errors(loras, models, workflows),
    )
    errors = list(dict.fromkeys(found))  # a value that is wrong for several tasks is reported once
    if errors:
        raise _invalid(sources, errors)
    catalogue = Catalogue(
        models=models,
        workflows=workflows,
        default_model=document["default_model"],
        nodes=nodes,
        signatures=signatures,
        sampling_names=_sampling_names(sources.sampling_names),
        renderer=TemplateRenderer(sources.templates),
        loras=loras,
        stages={name: _stage(name, named.expanded(entry)) for name, entry in entries["stages"].items()},
        named=named,
    )
    if errors := list(stage_errors(catalogue)):
        raise _invalid(sources, errors)
    return catalogue


def known_nodes(sources: Sources, user_facts: NodeFacts) -> dict[str, Any]:
    """The content of nodes.json, with the nodes learned from the user's engines, those that only the documentation has,
    and all facts about them. `learned` are the versions of these engines, `complete` those of nodes.json, whose nodes are
    all known. Raises CatalogueInvalid."""
    document = json.loads(sources.nodes)
    learned = parse_learned(sources.learned_nodes)
    facts = merged_facts(read_yaml(sources.node_facts), user_facts)
    merged = with_documented(add_learned(document, learned), learned, sources.documented_nodes)
    return {
        **merged,
        "learned": list(learned["versions"]),
        "complete": document["versions"],
        "nodes": with_facts(merged["nodes"], facts),
    }


def learned_nodes(paths: SourcePaths) -> dict[str, Any]:
    """The nodes learned from the user's engines: {"versions": {version: {class: record}}}. Raises CatalogueInvalid."""
    return parse_learned(read_learned_nodes(paths))


def parse_learned(text: str) -> dict[str, Any]:
    """The nodes learned from the user's engines; `text` may be empty. Raises CatalogueInvalid."""
    if not text:
        return {"versions": {}}
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"{type(error).__name__}: {error}") from error
    for fault in _learned_faults(document):
        raise _damaged(fault)
    return dict(document)


def _learned_faults(document: Any) -> Iterator[str]:
    versions = document.get("versions") if isinstance(document, dict) else None
    if not isinstance(versions, dict):
        yield "it has no object `versions`"
        return
    for version, records in versions.items():
        if not isinstance(records, dict):
            yield f"{version} is not an object"
            continue
        for name, record in records.items():
            yield from record_faults(f"{version}.{name}", record)


def _damaged(reason: str) -> CatalogueInvalid:
    return CatalogueInvalid(
        "nodes.json in the state directory, with the nodes learned by `easel snapshot-nodes`, is damaged "
        f"({shorten(reason, 200)}). Delete it and run `easel snapshot-nodes URL` again."
    )


def merged_facts(shipped: NodeFacts, own: NodeFacts) -> dict[str, Any]:
    """Both, by class and key; those of `own` win."""
    merged = dict(shipped)
    for name, facts in own.items():
        known = shipped.get(name, {})
        merged[name] = {**known, **facts, "files": {**known.get("files", {}), **facts.get("files", {})}}
    return merged


def _invalid(sources: Sources, errors: list[LocatedError]) -> CatalogueInvalid:
    named, further = errors[:MAX_ERRORS], len(errors) - MAX_ERRORS
    numbers = lines_of(sources.catalogue, [path for path, _ in named])
    lines = [
        f"{sources.catalogue_name}:{number}: {'.'.join(map(str, path)) or 'document'}: {text}"
        for number, (path, text) in zip(numbers, named, strict=True)
    ]
    if further > 0:
        lines.append(f"and {further} more")
    return CatalogueInvalid("\n".join(lines), errors=lines)


def _checked_document(sources: Sources) -> Any:
    try:
        document = read_yaml(sources.catalogue, repeated_sections=True)
    except ValueError as error:
        raise CatalogueInvalid(f"{sources.catalogue_name}:{error}") from error
    schema = json.loads(sources.catalogue_schema)
    errors = (
        [] if is_valid(schema, document) else list(located_errors(Draft202012Validator(schema), document))
    )
    if errors:
        raise _invalid(sources, errors)
    return document


# --- entries -> values ----------------------------------------------------------------------------


def new_workflow(
    name: str,
    entry: Mapping[str, Any],
    signatures: Signatures,
    templates: Mapping[str, str],
    file: str = CATALOGUE_FILE,
) -> Workflow:
    """The workflow that `file` declares. `templates`: those that it can use, by the names that it uses for them."""
    template = entry.get("template", name + TEMPLATE_SUFFIX)
    return Workflow(
        id=name,
        title=entry["title"],
        template=template,
        tasks=tuple(entry["tasks"]),
        inputs={key: _input(value, signatures) for key, value in entry["inputs"].items()},
        presets=entry.get("presets", {}),
        output=None if "output" not in entry else str(entry["output"]),
        size_from_image=entry.get("size_from_image", False),
        faults=(
            *missing_template(name, template, templates, file),
            *unknown_choices(name, entry["inputs"], signatures),
        ),
        file=file,
        images=_image_count(entry.get("images", {})),
    )


def _image_count(entry: Mapping[str, Any]) -> ImageCount:
    least = entry.get("min", 1)
    return ImageCount(least, entry.get("max", least))


def _input(entry: Mapping[str, Any], signatures: Signatures) -> Input:
    schema = {key: value for key, value in entry.items() if not key.startswith("x-")}
    is_image = schema["type"] == "image"
    if is_image:
        schema |= {"type": ["string", "null"], "default": None}
    choices = choices_of(entry.get("x-choices", ""), signatures)
    if choices is not None:
        schema["enum"] = [*choices, *entry.get("x-more-choices", ())]
    return Input(
        schema=schema,
        unused_when=entry.get("x-unused-when", {}),
        tasks=tuple(entry.get("x-tasks", TASKS)),
        choices_from=entry.get("x-choices", ""),
        more_choices=tuple(entry.get("x-more-choices", ())),
        is_image=is_image,
        takes_more=entry.get("x-takes-more", False),
        conditional_schemas=tuple(_conditional_schema(item) for item in entry.get("x-when", ())),
    )


def _conditional_schema(entry: Mapping[str, Any]) -> ConditionalSchema:
    conditions = {
        name: tuple(values) if isinstance(values, list) else (values,) for name, values in entry["if"].items()
    }
    return ConditionalSchema(conditions, entry["then"])


def new_model(name: str, entry: Mapping[str, Any], workflows: Mapping[str, Workflow]) -> Model:
    """The model of this entry. `workflows`: those that it can use, by the names that it uses for them."""
    workflow = entry["workflow"]
    if isinstance(workflow, str):
        tasks = workflows[workflow].tasks if workflow in workflows else ("generate",)
        workflow = dict.fromkeys(tasks, workflow)
    limits = entry.get("limits", {})
    files = {role: _file(file, file["folder"]) for role, file in entry["files"].items()}
    return Model(
        id=name,
        title=entry["title"],
        family=entry["family"],
        workflows=workflow,
        files=files,
        licence=Licence(**entry["licence"]),
        size=_size_rule(entry["size"]),
        defaults=entry.get("defaults", {}),
        limit_n=limits.get("n", DEFAULT_LIMIT_N),
        limit_batch=limits.get("batch", DEFAULT_LIMIT_BATCH),
        aliases=tuple(entry.get("aliases", ())),
        disk_gb=entry.get("disk_gb", _disk_gb(files)),
        min_vram_gb=entry.get("min_vram_gb"),
        presets=entry.get("presets", {}),
        needs=Needs(**entry["needs"]) if "needs" in entry else None,
    )


def _disk_gb(files: Mapping[str, File]) -> float | None:
    """The size of the files together in 10^9 bytes, in steps of 0.01; None if that of one is not known."""
    sizes = {(file.folder, file.name): file.size for file in files.values()}
    known = [size for size in sizes.values() if size is not None]
    return round(sum(known) / 1e9, 2) if known and len(known) == len(sizes) else None


def _file(entry: Mapping[str, Any], folder: str) -> File:
    return File(**{**entry, "name": with_slashes(entry["name"]), "folder": folder})


def new_lora(name: str, entry: Mapping[str, Any]) -> Lora:
    """The LoRA of this entry."""
    return Lora(
        id=name,
        title=entry["title"],
        families=tuple(entry["families"]),
        file=_file(entry["file"], "loras"),
        licence=Licence(**entry["licence"]),
        strength=entry.get("strength", 1.0),
        defaults=entry.get("defaults", {}),
    )


def _stage(name: str, entry: Mapping[str, Any]) -> Stage:
    return Stage(
        id=name,
        title=entry["title"],
        template=entry["template"],
        values=tuple(entry["values"]),
        files={role: _file(file, file["folder"]) for role, file in entry["files"].items()},
        licence=Licence(**entry["licence"]),
    )


def _size_rule(entry: Mapping[str, Any]) -> SizeRule:
    return SizeRule(
        default=_size(entry["default"]),
        multiple_of=entry["multiple_of"],
        min=_size(entry["min"]),
        max=_size(entry["max"]),
        max_pixels=entry.get("max_pixels"),
        suggested=tuple(map(_size, entry.get("suggested", ()))),
    )


@functools.lru_cache(maxsize=1024)
def _size(text: str) -> Size:
    """One object for each size: 10,000 models name the same few again and again, and would need 12 MB for them."""
    return Size.parse(text)


def _sampling_names(text: str) -> dict[str, dict[str, ValueMapping]]:
    return {
        kind: {
            name.casefold(): ValueMapping(entry["is"], entry.get("exact", True), entry.get("why", ""))
            for name, entry in names.items()
        }
        for kind, names in read_yaml(text).items()
    }
