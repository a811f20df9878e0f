"""easel snapshot-nodes: learns node signatures from ComfyUI, so that templates can use new nodes without code changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from commands.context import engine_at, handle_errors, services, write_file
from compiler import SourcePaths, learned_nodes, read_sources
from compiler.documented_nodes import documented_classes
from compiler.node_records import (
    NodeFacts,
    add_learned,
    is_node_entry,
    node_record,
    record_nodes,
    without_files,
)
from compiler.sources import MORE_NODES, classes_in
from errors import CatalogueInvalid, InvalidValue, NodesMissing, StoreUnwritable
from schemas.yaml_document import read_yaml


@click.command("snapshot-nodes", short_help="Learn node signatures from ComfyUI.")
@click.argument("source")
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="CLASS",
    help="Also learn this node class; can be repeated.",
)
@click.option("--version", help="Version of ComfyUI; required if SOURCE is a file.")
@click.option(
    "--shipped",
    is_flag=True,
    help="Write schemas/nodes.json, which is part of Easel, instead of the file of this installation.",
)
@handle_errors
def snapshot_nodes(source: str, nodes: tuple[str, ...], version: str | None, shipped: bool) -> None:
    """Learn the nodes that the templates use from SOURCE, for this installation.

    SOURCE is the URL of a running ComfyUI, or a file with the response of its /object_info. Run this once for each
    ComfyUI version to support: inputs and choices that not all versions have are marked with the versions that do. The
    nodes are kept in nodes.json in the state directory; a running server uses them at its next request.
    """
    paths = services().source_paths
    known = json.loads((paths.schemas / "nodes.json").read_text("utf-8"))
    learned = learned_nodes(paths)
    before = known if shipped else add_learned(known, learned)
    required = {*nodes, *used_classes(paths)}
    classes = {*required, *before["nodes"]}
    more = set(json.loads((paths.schemas / MORE_NODES).read_text("utf-8"))["nodes"]) if shipped else set()
    everything, source_version = _read(source, version, {*classes, *more}, all_of_file=shipped)
    object_info = {name: entry for name, entry in everything.items() if name in classes}
    documented = documented_classes(read_sources(paths).documented_nodes)
    missing = sorted(required - set(object_info) - set(before["nodes"]) - documented)
    if missing:
        raise NodesMissing(f"{source} has no node {', '.join(missing)}.", nodes=missing)
    if shipped:
        if _is_sketch(source) and documented & set(object_info):
            raise InvalidValue(
                f"{source} is a sketch engine that also has nodes which only ComfyUI's documentation describes. "
                "schemas/nodes.json is written from a ComfyUI, or a file with its /object_info."
            )
        facts = read_yaml((paths.schemas / "node_facts.yaml").read_text("utf-8"))
        after = record_nodes(known, object_info, version=source_version, classes=classes, facts=facts)
        target, text = paths.schemas / "nodes.json", nodes_text(after)
        is_complete = not _is_sketch(source)  # the sketch engine has only those that it can run
        _write_more_nodes(paths, everything, source_version, classes, facts, is_complete=is_complete)
    elif _is_sketch(source):
        click.echo(
            f"Nothing learned: {source} is Easel's sketch engine, which has the nodes that Easel knows already."
        )
        return
    else:
        learned = _with_version(learned, known, object_info, source_version)
        after = add_learned(known, learned)
        target, text = _learned_file(paths), learned_text(learned)
    write_file(target, text.encode("utf-8"))
    _report(before["nodes"], after["nodes"], source_version, target)


def _write_more_nodes(
    paths: SourcePaths,
    object_info: Mapping[str, Any],
    version: str,
    known: set[str],
    facts: NodeFacts,
    *,
    is_complete: bool,
) -> None:
    """Write schemas/more_nodes.json: the other nodes of ComfyUI, without those that call paid services, for imported
    workflows. `is_complete`: a node that `object_info` does not have is one that this version lacks."""
    target = paths.schemas / MORE_NODES
    before = json.loads(target.read_text("utf-8"))
    others = {
        name: entry for name, entry in object_info.items() if name not in known and not entry.get("api_node")
    }
    kept = {**before, "nodes": {name: node for name, node in before["nodes"].items() if name not in known}}
    classes = {*others, *(kept["nodes"] if is_complete else ())}
    after = record_nodes(kept, others, version=version, classes=classes, facts=facts)
    write_file(target, nodes_text(after).encode("utf-8"))
    click.echo(f"{len(after['nodes'])} other nodes written to {target}.")


def _with_version(
    learned: Mapping[str, Any], known: Mapping[str, Any], object_info: Mapping[str, Any], version: str
) -> dict[str, Any]:
    """`learned` with the nodes of one more version, without those of which nodes.json says the same already."""
    records = {name: without_files(node_record(entry)) for name, entry in object_info.items()}
    alone = add_learned(known, {"versions": {version: records}})["nodes"]
    news = {name: record for name, record in records.items() if alone[name] != known["nodes"].get(name)}
    earlier = {
        name: record
        for name, record in learned["versions"].get(version, {}).items()
        if name not in object_info
    }
    versions = {**learned["versions"], version: dict(sorted({**earlier, **news}.items()))}
    return {"versions": {name: nodes for name, nodes in versions.items() if nodes}}


def add_to_learned(paths: SourcePaths, object_info: Mapping[str, Any], version: str) -> None:
    """Keep these `/object_info` entries of a ComfyUI of this version for this installation. Raises StoreUnwritable."""
    known = json.loads((paths.schemas / "nodes.json").read_text("utf-8"))
    learned = _with_version(learned_nodes(paths), known, object_info, version)
    write_file(_learned_file(paths), learned_text(learned).encode("utf-8"))


def replace_learned(paths: SourcePaths, text: str) -> None:
    """Make `text` the file with the learned nodes; no file if it is empty. Raises StoreUnwritable."""
    if text:
        write_file(_learned_file(paths), text.encode("utf-8"))
    else:
        _learned_file(paths).unlink(missing_ok=True)


def _learned_file(paths: SourcePaths) -> Path:
    """The file for the learned nodes; its folder exists. Raises StoreUnwritable."""
    assert paths.learned_nodes is not None
    try:
        paths.learned_nodes.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnwritable(f"{paths.learned_nodes} cannot be written: {error.strerror}.") from error
    return paths.learned_nodes


def used_classes(paths: SourcePaths) -> set[str]:
    """Every node class that occurs in a template, also in those of the owner's folder."""
    sources = read_sources(paths)
    texts = (*sources.templates.values(), *sources.own_templates.values())
    return {name for text in texts for name in classes_in(text)}


def nodes_text(document: Mapping[str, Any]) -> str:
    """The text of nodes.json with one input per line, so that diffs are readable."""
    nodes = _nodes_block(document["nodes"], " ")
    return f'{{\n "versions": {_line(document["versions"])},\n "nodes": {nodes}\n}}\n'


def learned_text(document: Mapping[str, Any]) -> str:
    """The text of the file with the learned nodes, one input per line."""
    versions = [
        f"  {_line(version)}: {_nodes_block(nodes, '  ')}" for version, nodes in document["versions"].items()
    ]
    return '{\n "versions": {\n' + ",\n".join(versions) + "\n }\n}\n"


def _nodes_block(nodes: Mapping[str, Any], indent: str) -> str:
    blocks = []
    for name, node in nodes.items():
        inputs = [f"{indent}   {_line(key)}: {_line(value)}" for key, value in node["inputs"].items()]
        joined = ",\n".join(inputs)
        block = f"{{\n{joined}\n{indent}  }}" if inputs else "{}"
        others = ", ".join(f"{_line(key)}: {_line(value)}" for key, value in node.items() if key != "inputs")
        blocks.append(
            f'{indent} {_line(name)}: {{\n{indent}  "inputs": {block},\n{indent}  {others}\n{indent} }}'
        )
    return "{\n" + ",\n".join(blocks) + f"\n{indent}}}"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _read(
    source: str, version: str | None, classes: set[str], *, all_of_file: bool = False
) -> tuple[dict[str, Any], str]:
    """The /object_info entries of `classes`, or all those in a file, and the version of ComfyUI."""
    if source.startswith(("http://", "https://")):
        engine = engine_at(source)
        return _node_entries(engine.signatures(classes, fresh=True)), version or engine.stats().version
    if version is None:
        raise InvalidValue(
            "--version is required if SOURCE is a file: the ComfyUI version that the file is from.",
            param="version",
        )
    try:
        object_info = json.loads(Path(source).read_text("utf-8-sig"))
        entries = {name: entry for name, entry in object_info.items() if all_of_file or name in classes}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CatalogueInvalid(f"{source} is not a response of /object_info: {error}") from error
    return _node_entries(entries), version


def _node_entries(object_info: Mapping[str, Any]) -> dict[str, Any]:
    """`object_info` without the entries that describe no node; they are reported."""
    for name in sorted(name for name, entry in object_info.items() if not is_node_entry(entry)):
        click.echo(f"skipped  {name}: /object_info does not describe it as a node", err=True)
    return {name: entry for name, entry in object_info.items() if is_node_entry(entry)}


def _is_sketch(source: str) -> bool:
    return source.startswith(("http://", "https://")) and engine_at(source).is_sketch


def _report(before: Mapping[str, Any], after: Mapping[str, Any], version: str, target: Path) -> None:
    for name, node in after.items():
        if name not in before:
            click.echo(f"new      {name}")
        elif node != before[name]:
            click.echo(f"changed  {name}")
    click.echo(f"{len(after)} nodes, ComfyUI {version} included; written to {target}.")
