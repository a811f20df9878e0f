"""flask snapshot-nodes: imports node signatures from ComfyUI, so that templates can use new nodes without code changes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from commands.context import engine_at, handle_errors, services, write_file
from compiler import SourcePaths
from compiler.signatures import record_signatures
from errors import CatalogueInvalid, InvalidValue, NodesMissing
from schemas.yaml_document import read_yaml

_CLASS_TYPE = re.compile(r'"class_type"\s*:\s*"([^"]+)"')


@click.command("snapshot-nodes", short_help="Import node signatures from ComfyUI.")
@click.argument("source")
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="CLASS",
    help="Also import this node class; can be repeated.",
)
@click.option("--version", help="Version of ComfyUI; required if SOURCE is a file.")
@handle_errors
def snapshot_nodes(source: str, nodes: tuple[str, ...], version: str | None) -> None:
    """Merge the signatures of the nodes that the templates use from SOURCE into schemas/nodes.json.

    SOURCE is the URL of a running ComfyUI, or a file with the response of its /object_info. Run this once for each
    ComfyUI version to support: inputs and choices that not all versions have are marked with the versions that do.
    """
    paths = services().source_paths
    target = paths.schemas / "nodes.json"
    known = json.loads(target.read_text("utf-8"))
    required = {*nodes, *used_classes(paths)}
    object_info, source_version = _read(source, version, {*required, *known["nodes"]})
    missing = sorted(required - set(object_info) - set(known["nodes"]))
    if missing:
        raise NodesMissing(f"{source} has no node {', '.join(missing)}.", nodes=missing)
    folders = read_yaml((paths.schemas / "files.yaml").read_text("utf-8"))
    merged = record_signatures(
        known, object_info, version=source_version, classes={*required, *known["nodes"]}, folders=folders
    )
    write_file(target, nodes_text(merged).encode("utf-8"))
    _report(known["nodes"], merged["nodes"], source_version)


def used_classes(paths: SourcePaths) -> set[str]:
    """Every node class that occurs in a template."""
    return {
        name
        for template in paths.templates.glob("*.json.j2")
        for name in _CLASS_TYPE.findall(template.read_text("utf-8"))
    }


def nodes_text(document: Mapping[str, Any]) -> str:
    """The text of nodes.json with one input per line, so that diffs are readable."""
    nodes = []
    for name, node in document["nodes"].items():
        inputs = [f"    {json.dumps(key)}: {_line(value)}" for key, value in node["inputs"].items()]
        joined = ",\n".join(inputs)
        block = f"{{\n{joined}\n   }}" if inputs else "{}"
        nodes.append(
            f"  {json.dumps(name)}: {{\n   \"inputs\": {block},\n"
            f"   \"outputs\": {_line(node['outputs'])}, \"output_node\": {_line(node['output_node'])}\n  }}"
        )  # fmt: skip
    return (
        f'{{\n "versions": {_line(document["versions"])},\n "nodes": {{\n' + ",\n".join(nodes) + "\n }\n}\n"
    )


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _read(source: str, version: str | None, classes: set[str]) -> tuple[dict[str, Any], str]:
    """The /object_info entries of `classes`, and the version of ComfyUI."""
    if source.startswith(("http://", "https://")):
        engine = engine_at(source)
        return engine.signatures(classes, fresh=True), version or engine.stats().version
    if version is None:
        raise InvalidValue(
            "--version is required if SOURCE is a file: the ComfyUI version that the file is from.",
            param="version",
        )
    try:
        object_info = json.loads(Path(source).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogueInvalid(f"{source} is not a response of /object_info: {error}") from error
    return {name: entry for name, entry in object_info.items() if name in classes}, version


def _report(before: Mapping[str, Any], after: Mapping[str, Any], version: str) -> None:
    for name, node in after.items():
        if name not in before:
            click.echo(f"new      {name}")
        elif node != before[name]:
            click.echo(f"changed  {name}")
    click.echo(f"{len(after)} nodes, ComfyUI {version} included.")
