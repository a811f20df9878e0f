"""What easel import-workflow does: reads a workflow, shows and proves what it would become, and writes it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from api.reserved_fields import reserved_reason
from atomic_file import create_atomic
from commands.context import engine_at, services
from commands.snapshot import add_to_learned, replace_learned
from compiler import Catalogue, SourcePaths, Sources, load_catalogue, read_sources
from compiler.catalogue_file import known_nodes
from compiler.node_records import node_record, with_facts, without_files
from compiler.signatures import Signatures, parse_signatures
from compiler.sources import TEMPLATE_SUFFIX, read_learned_nodes, read_more_nodes
from engine import Engine
from errors import (
    EaselError,
    EngineUnreachable,
    InvalidValue,
    NodesMissing,
    StoreUnwritable,
    WorkflowNotImportable,
    shorten,
)
from importer import (
    Choices,
    Imported,
    OfficialTemplate,
    TemplateLibrary,
    Workflow,
    import_workflow,
    packaged_templates,
    parse_workflow,
    read_workflow,
)
from schemas.modeline import modeline
from schemas.yaml_document import read_yaml

_TEMPLATE_PREFIX = "template:"
_MAX_NAME = 100
"""characters; names of files have at most 255 bytes"""
_MAX_LISTED_CHECKED = 40
"""Templates of which a list says what the engine lacks"""


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What the command line says; see `import_command.py`. `places`: NODE.INPUT by field."""

    source: str | None
    name: str | None
    title: str | None
    is_agreed: bool
    url: str | None
    object_info: Path | None
    word: str | None
    output: str | None
    expose: tuple[str, ...]
    allow_api_nodes: bool
    as_json: bool
    dry_run: bool
    places: Mapping[str, str]


def run(options: ImportOptions) -> None:
    """Import a workflow, or list the official templates. Raises WorkflowUnreadable, WorkflowNotImportable, NodesMissing,
    InvalidValue, StoreUnwritable."""
    if options.title is not None and not options.title.isprintable():
        raise InvalidValue("The title has characters that cannot be shown; leave them out.", param="title")
    nodes = _NodeSource(services().source_paths, options.url, options.object_info, options.allow_api_nodes)
    if options.word is not None:
        _list_templates(_library(nodes), options.word, nodes)
        return
    if options.source is None:
        raise click.UsageError("Missing argument 'SOURCE'.")
    workflow, default_name = _workflow(options.source, nodes)
    model = _model_name(options.name or default_name)
    signatures = nodes.required({node["class_type"] for node in workflow.nodes.values()})
    choices = Choices(
        places={key: _place(value) for key, value in options.places.items()},
        output=options.output,
        exposed=_all_exposed(options.expose),
    )
    imported = import_workflow(
        workflow, signatures, name=model, title=options.title or model, choices=choices
    )
    target = _Target(services().source_paths, imported)
    target.prove(nodes)
    if options.as_json:
        click.echo(json.dumps(_as_json(workflow, imported), indent=2, ensure_ascii=False))
    else:
        _show(workflow, imported, target)
    if options.dry_run:
        return
    if not options.is_agreed and not click.confirm(
        f"Write {target.entries_path} and {target.template_path}?", err=True
    ):
        sys.exit(2)
    target.write(nodes)
    click.secho(f"Requests with the model {model} draw it from now on.", err=True, fg="green")
    click.echo("easel check-catalogue --check URL says which files a ComfyUI lacks for it.", err=True)


# --- the workflow ---------------------------------------------------------------------------------------


def _workflow(source: str, nodes: _NodeSource) -> tuple[Workflow, str]:
    """The workflow, and a name for it."""
    try:
        return _read(source, nodes)
    except NodesMissing as error:
        nodes.refuse_paid(set(error.details["nodes"]))
        raise


def _read(source: str, nodes: _NodeSource) -> tuple[Workflow, str]:
    if source.startswith(_TEMPLATE_PREFIX):
        template = source.removeprefix(_TEMPLATE_PREFIX)
        document = _library(nodes).workflow(template)
        return parse_workflow(document, nodes.signatures), template
    path = Path(source)
    if source.startswith(("http://", "https://")):
        raise InvalidValue(
            f"{source} is not a file. Download it first, then import the file.", param="SOURCE"
        )
    return read_workflow(path, nodes.signatures), path.stem


def _library(nodes: _NodeSource) -> TemplateLibrary:
    """The official templates of the ComfyUI that is named, or connected and has some, else of the package."""
    engine, packaged = nodes.engine, packaged_templates()
    if engine is not None and (nodes.is_named or packaged is None or engine.template("index") is not None):
        return TemplateLibrary(engine.template, engine.url)
    if packaged is None:
        raise InvalidValue(
            "Official templates come from a ComfyUI (--engine URL), or from the package comfyui-workflow-templates-json: "
            ".venv/bin/pip install comfyui-workflow-templates-json.",
            param="SOURCE",
        )
    return packaged


def _model_name(name: str) -> str:
    parts = re.sub(r"[^A-Za-z0-9_./-]+", "-", name).split("/")
    cleaned = "/".join(part for part in parts if part.strip(".")).strip("-./_")
    if not cleaned or len(cleaned) > _MAX_NAME:
        raise InvalidValue(
            f"{shorten(name)!r} is no name for a model; choose one with --name, of at most {_MAX_NAME} characters.",
            param="name",
        )
    return cleaned


def _place(text: str) -> tuple[str, str]:
    node, dot, key = text.partition(".")
    if not (node and dot and key):
        raise InvalidValue(f"{text!r} is not NODE.INPUT, such as 6.text.", param="NODE.INPUT")
    return node, key


def _all_exposed(texts: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    exposed: dict[str, tuple[str, str]] = {}
    for name, place in map(_exposed, texts):
        if name in exposed:
            raise InvalidValue(f"--expose names two inputs {name}; give each another name.", param="expose")
        exposed[name] = place
    return exposed


def _exposed(text: str) -> tuple[str, tuple[str, str]]:
    place, equals, name = text.rpartition("=")
    if not equals or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InvalidValue(
            f"{text!r} is not NODE.INPUT=NAME, where NAME has lower-case letters, digits and _.",
            param="expose",
        )
    if (reason := reserved_reason(name)) is not None:
        raise InvalidValue(f"An input cannot be named {name}: {reason}. Choose another name.", param="expose")
    return name, _place(place)


# --- signatures -----------------------------------------------------------------------------------------


class _NodeSource:
    """Where the signatures of nodes come from: the file or engine that was named; else what Easel knows, and the connected
    engine for what it does not."""

    def __init__(
        self, paths: SourcePaths, url: str | None, object_info: Path | None, allow_api_nodes: bool
    ) -> None:
        self._paths, self._allow_api_nodes = paths, allow_api_nodes
        self._sources = read_sources(paths)
        self._facts = read_yaml(self._sources.node_facts)
        self._known = known_nodes(self._sources, {})["nodes"]
        self._named = engine_at(url) if url else None
        self._file = _object_info(object_info) if object_info else {}
        self._is_file = object_info is not None
        self._fetched: dict[str, Any] = {}
        """Raw entries that came from an engine or file"""

    @property
    def is_named(self) -> bool:
        """Whether an option names the engine."""
        return self._named is not None

    @cached_property
    def engine(self) -> Engine | None:
        """The engine that is named, or connected; a sketch engine has no workflows of its own. One that is away is asked and
        reported once."""
        if self._named is not None:
            return self._named
        try:
            engine = services().engine_selector.comfyui()
            return None if engine is None or engine.is_sketch else engine
        except EaselError as error:
            click.echo(f"{error.message} What only a ComfyUI knows is missing therefore.", err=True)
            return None

    def required(self, classes: set[str]) -> Signatures:
        """The signatures of `classes`, all of which run. Raises NodesMissing for those that nothing knows,
        WorkflowNotImportable for those that call paid services."""
        found = self.signatures(classes)
        self.refuse_paid(classes)
        unknown = sorted(classes - set(found))
        if unknown:
            nodes = "the node" if len(unknown) == 1 else "the nodes"
            raise NodesMissing(
                f"Nothing knows {nodes} {', '.join(unknown)}. Name a ComfyUI that has them (--engine URL), or a saved "
                "response of its /object_info (--object-info FILE).",
                nodes=unknown,
            )
        return found

    def signatures(self, classes: set[str]) -> Signatures:
        """The signatures of `classes`, without those that nothing knows: a file may have them where they do not run."""
        documented = {name: record for name, record in self._known.items() if record.get("documented")}
        records = {name: record for name, record in self._known.items() if name not in documented}
        if self._is_file:
            self._fetched |= {name: entry for name, entry in self._file.items() if name in classes}
        elif self._named is not None:
            self._fetched |= self._named.signatures(classes)
        missing = classes - set(records) - set(self._fetched)
        if missing:
            more = with_facts(read_more_nodes(self._paths), self._facts)
            records |= {name: more[name] for name in missing if name in more}
            missing -= set(more)
        if missing and not self._is_file and self._named is None and (engine := self.engine) is not None:
            try:
                self._fetched |= engine.signatures(missing)
            except EngineUnreachable as error:
                self.engine = None  # asked once, not for each template of a list
                click.echo(f"{error.message} Nodes that Easel does not know are missing therefore.", err=True)
        fetched = {name: without_files(node_record(entry)) for name, entry in self._fetched.items()}
        records = {**documented, **records, **with_facts(fetched, self._facts)}
        return parse_signatures({"nodes": {name: records[name] for name in classes if name in records}})

    def refuse_paid(self, classes: set[str]) -> None:
        """Raises WorkflowNotImportable if some of `classes` call paid services, and the user did not allow that."""
        if self._allow_api_nodes:
            return
        paid = classes & set(json.loads((self._paths.schemas / "api_nodes.json").read_text("utf-8")))
        paid |= {name for name in classes if self._fetched.get(name, {}).get("api_node")}
        if paid:
            raise WorkflowNotImportable(
                f"The workflow calls paid services: {', '.join(sorted(paid))}. Every picture would cost money; "
                "--allow-api-nodes imports it all the same."
            )

    @contextlib.contextmanager
    def learned(self, classes: frozenset[str]) -> Iterator[None]:
        """Keep the signatures of classes that Easel did not know, for the server; not if the block raises an error."""
        known = {name for name, record in self._known.items() if not record.get("documented")}
        known |= set(read_more_nodes(self._paths))
        new = {name: entry for name, entry in self._fetched.items() if name in classes and name not in known}
        if not new:
            yield
            return
        version = self._named.stats().version if self._named is not None else "imported"
        before = read_learned_nodes(self._paths)
        add_to_learned(self._paths, new, version)
        after = read_learned_nodes(self._paths)
        try:
            yield
        except BaseException:
            if read_learned_nodes(self._paths) == after:  # otherwise somebody else has learned more meanwhile
                replace_learned(self._paths, before)
            raise

    @property
    def records(self) -> Mapping[str, Any]:
        """The records of the classes that came from an engine or file, by class."""
        return {name: without_files(node_record(entry)) for name, entry in self._fetched.items()}


def _object_info(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8-sig"))
        return {name: entry for name, entry in document.items() if isinstance(entry, dict)}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InvalidValue(
            f"{path} is not a response of /object_info: {error}", param="object-info"
        ) from error


# --- what is written ------------------------------------------------------------------------------------


class _Target:
    """The two files of an imported workflow in the owner's folder."""

    def __init__(self, paths: SourcePaths, imported: Imported) -> None:
        assert paths.own_folder is not None
        self._paths, self._imported, self._folder = paths, imported, paths.own_folder
        stem = imported.workflow
        self.entries_path = self._folder / f"{stem}.yaml"
        self.template_path = self._folder / f"{stem}{TEMPLATE_SUFFIX}"

    def _check_names(self, catalogue: Catalogue) -> None:
        """Raises WorkflowNotImportable if a model, workflow or file has the name already: nothing is overwritten."""
        name = self._imported.name
        names = {
            each.casefold() for model in catalogue.models.values() for each in (model.id, *model.aliases)
        }
        if name.casefold() in names:
            raise WorkflowNotImportable(f"A model is named {name} already; choose another name with --name.")
        if self._imported.workflow in catalogue.workflows:
            raise WorkflowNotImportable(
                f"A workflow is named {self._imported.workflow} already; choose another name with --name."
            )
        if self._has_template() and not os.path.lexists(self.entries_path):
            return  # left by an import that was interrupted
        if os.path.lexists(self.template_path) and not os.path.lexists(self.entries_path):
            raise WorkflowNotImportable(
                f"{self.template_path} exists already, without {self.entries_path.name}. Delete it if it is left from an "
                "import that was interrupted, or choose another name with --name."
            )
        for path in (self.entries_path, self.template_path):
            if os.path.lexists(path):
                raise WorkflowNotImportable(f"{path} exists already; choose another name with --name.")

    def _has_template(self) -> bool:
        """Whether the very template is in the folder already."""
        return _has_content(self.template_path, self._imported.template.encode("utf-8"))

    def prove(self, nodes: _NodeSource) -> None:
        """Raises WorkflowNotImportable if the catalogue with the new entries would not draw the model."""
        sources = read_sources(self._paths)
        self._check_names(load_catalogue(sources, proved=()))
        sources = dataclasses.replace(
            sources,
            nodes=_with_records(sources, self._paths, self._imported.classes, nodes.records),
            own_entries={**sources.own_entries, self.entries_path.name: self._imported.entries},
            own_templates={**sources.own_templates, self.template_path.name: self._imported.template},
        )
        name = self._imported.name
        catalogue = load_catalogue(sources, proved={name})
        faults = [fault for texts in catalogue.undrawable.get(name, {}).values() for fault in texts]
        if name not in catalogue.models:
            faults += [str(fault) for fault in catalogue.own_faults if self.entries_path.name in fault.file]
        if faults:
            listed = "\n".join(f"- {fault}" for fault in dict.fromkeys(faults))
            raise WorkflowNotImportable(f"The model would not be drawn, so nothing is written:\n{listed}")

    def write(self, nodes: _NodeSource) -> None:
        """Write the template and the signatures of `nodes` that it needs, then the entries, with which the server begins to
        use them. Raises StoreUnwritable, WorkflowNotImportable if another process has just written one of the files."""
        try:
            with contextlib.suppress(FileExistsError):  # something else in its place: writing into it says so
                self._folder.mkdir(parents=True)
            is_new = not self._has_template()
            if is_new:
                create_atomic(self.template_path, self._imported.template.encode("utf-8"))
            entries = f"{modeline(self._folder)}\n{self._imported.entries}".encode()
            try:
                with nodes.learned(self._imported.classes):
                    create_atomic(self.entries_path, entries)
            except BaseException:
                if is_new and not _has_content(self.entries_path, entries):
                    self.template_path.unlink(missing_ok=True)
                raise
        except FileExistsError as error:
            if not self._folder.exists():
                raise StoreUnwritable(
                    f"{self._folder} is a link to a folder that does not exist; create it."
                ) from error
            raise WorkflowNotImportable(
                f"{error.filename2 or error.filename} exists already; choose another name with --name."
            ) from error
        except OSError as error:
            raise StoreUnwritable(f"{self._folder} cannot be written: {error.strerror}.") from error


def _has_content(path: Path, data: bytes) -> bool:
    """Whether `path` is a regular file with this content."""
    try:
        return not path.is_symlink() and path.is_file() and path.read_bytes() == data
    except OSError:
        return False


def _with_records(
    sources: Sources, paths: SourcePaths, classes: frozenset[str], records: Mapping[str, Any]
) -> str:
    """The content of nodes.json with the nodes that the new template needs besides."""
    document = json.loads(sources.nodes)
    more = read_more_nodes(paths)
    added = {
        name: records.get(name) or more[name]
        for name in classes
        if name not in document["nodes"] and (name in records or name in more)
    }
    return json.dumps({**document, "nodes": {**document["nodes"], **added}})


# --- what is shown --------------------------------------------------------------------------------------


def _show(workflow: Workflow, imported: Imported, target: _Target) -> None:
    click.echo(f"{imported.name}: a model from the {workflow.kind}, for {', '.join(imported.bindings.tasks)}")
    click.echo("A request may set:")
    for name, place, value in _rows(workflow, imported):
        click.echo(f"  {name:<16} {place:<40} {shorten(json.dumps(value, ensure_ascii=False), 60)}")
    if imported.files:
        click.echo("Files:")
    for role, (file, _) in imported.files.items():
        click.echo(f"  {role:<16} {file.folder}/{file.name}  {file.url or '(no URL in the workflow)'}")
    for text in _remarks(workflow, imported):
        click.echo(f"- {text}")
    for assumption in imported.bindings.assumptions:
        click.secho(f"- Assumed: {assumption.text} {assumption.option} decides otherwise.", fg="yellow")
    click.echo(f"The licence is unknown: write it into {target.entries_path.name}.")


def _rows(workflow: Workflow, imported: Imported) -> Iterator[tuple[str, str, Any]]:
    for field in imported.bindings.fields.values():
        if field.name == "prefix":
            continue
        places = ", ".join(_described(workflow, place) for place in field.places)
        yield field.name, places, field.value
    for index, place in enumerate(imported.bindings.images, 1):
        name = "image" if len(imported.bindings.images) == 1 else f"image {index}"
        yield name, _described(workflow, place), workflow.nodes[place[0]]["inputs"].get(place[1])


def _described(workflow: Workflow, place: tuple[str, str]) -> str:
    return f"{place[0]}.{place[1]} ({workflow.nodes[place[0]]['class_type']})"


def _remarks(workflow: Workflow, imported: Imported) -> Iterator[str]:
    yield from workflow.notes
    yield from imported.bindings.notes
    if imported.left_out:
        names = ", ".join(f"{node} ({workflow.nodes[node]['class_type']})" for node in imported.left_out)
        yield f"Left out, because no output needs them: {names}."
    for node_class, facts in imported.facts.items():
        what = [f"other values of {', '.join(facts['any_value'])}"] if "any_value" in facts else []
        what += ["further inputs"] if facts.get("more_inputs") else []
        yield (
            f"The workflow has {' and '.join(what)} of {node_class} than Easel knows; it may need a later ComfyUI, which "
            "then decides."
        )
    texts = [
        field.value
        for field in imported.bindings.fields.values()
        if field.name in ("prompt", "negative_prompt")
    ]
    if any(isinstance(text, str) and re.search(r"\{[^{}]*\|[^{}]*\}", text) for text in texts):
        yield "A text has choices such as {red|blue}, which ComfyUI's editor makes at random; they are kept as text."


def _as_json(workflow: Workflow, imported: Imported) -> dict[str, Any]:
    bindings = imported.bindings
    return {
        "model": imported.name,
        "kind": workflow.kind,
        "tasks": list(bindings.tasks),
        "output": bindings.output,
        "fields": {
            field.name: {"at": [list(place) for place in field.places], "value": field.value}
            for field in bindings.fields.values()
        },
        "size_from_image": bindings.size.from_picture,
        "images": [list(place) for place in bindings.images],
        "files": {
            role: {**dataclasses.asdict(file), "at": [list(place) for place in places]}
            for role, (file, places) in imported.files.items()
        },
        "assumptions": [dataclasses.asdict(assumption) for assumption in bindings.assumptions],
        "notes": list(_remarks(workflow, imported)),
        "left_out": list(imported.left_out),
        "ids": dict(imported.ids),
    }


# --- official templates ---------------------------------------------------------------------------------


def _list_templates(library: TemplateLibrary, word: str, nodes: _NodeSource) -> None:
    wanted = word.casefold()
    found = [
        template
        for template in library.templates()
        if wanted in f"{template.name} {template.title} {template.category}".casefold()
    ]
    if not found:
        click.echo(
            f"{library.origin} has no template with {word!r} in its name, title or category.", err=True
        )
    for index, template in enumerate(found):
        lacks = _lacks(library, template, nodes) if index < _MAX_LISTED_CHECKED else ""
        size = f"{template.size_bytes / 1e9:.1f} GB" if template.size_bytes else ""
        click.echo(
            f"{template.name:<52} {template.category:<12} {size:>8} {template.usage:>6} uses  {template.title}{lacks}"
        )
    if len(found) > _MAX_LISTED_CHECKED:
        click.echo(
            f"What is lacking is said for the first {_MAX_LISTED_CHECKED} of {len(found)}; give a longer word.",
            err=True,
        )


def _lacks(library: TemplateLibrary, template: OfficialTemplate, nodes: _NodeSource) -> str:
    """What stands in the way of importing a template, as text for its line; empty if nothing does."""
    if not template.is_open:
        return "; calls paid services"
    if template.media_type != "image":
        return f"; makes {template.media_type}"
    try:
        workflow = parse_workflow(library.workflow(template.name), nodes.signatures)
    except NodesMissing as error:
        return f"; needs {', '.join(error.details['nodes'])}"
    except EaselError as error:
        return f"; {shorten(error.message, 80)}"
    missing = _missing_files(workflow, nodes)
    return f"; lacks {', '.join(missing)}" if missing else ""


def _missing_files(workflow: Workflow, nodes: _NodeSource) -> list[str]:
    """The files that the engine does not list; empty without an engine."""
    engine = nodes.engine
    if engine is None:
        return []
    listed = {
        choice
        for entry in engine.signatures({node["class_type"] for node in workflow.nodes.values()}).values()
        for spec in _choices(entry)
        for choice in spec
    }
    return sorted(name for name in workflow.files if name not in listed)


def _choices(entry: Mapping[str, Any]) -> Iterator[list[str]]:
    for group in (entry.get("input") or {}).values():
        for spec in group.values() if isinstance(group, dict) else ():
            if isinstance(spec, list) and spec:
                options = (
                    spec[0]
                    if isinstance(spec[0], list)
                    else (spec[1] if len(spec) > 1 else {}).get("options", [])
                )
                yield [option for option in options if isinstance(option, str)]
