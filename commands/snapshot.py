"""flask snapshot-nodes: learn node signatures from a ComfyUI, so that a template may use new nodes without any Python."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from commands.context import engine_at, handle_errors, services, write_file
from compiler import SourcePaths
from compiler.signatures import learn
from errors import CatalogueInvalid, InvalidValue, NodesMissing
from schemas.yaml_document import read_yaml

_CLASS_TYPE = re.compile(r'"class_type"\s*:\s*"([^"]+)"')


@click.command("snapshot-nodes", short_help="Learn node signatures from a ComfyUI.")
@click.argument("source")
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="CLASS",
    help="Also learn this node class; may be given several times.",
)
@click.option("--version", help="ComfyUI's version, when SOURCE is a file.")
@handle_errors
def snapshot_nodes(source: str, nodes: tuple[str, ...], version: str | None) -> None:
    """Merge what SOURCE says of the nodes that the templates use into schemas/nodes.json.

    SOURCE is the URL of a running ComfyUI, or a file with the answer of its /object_info. Run it once for each
    version that is to be served: inputs and choices that not all have are marked with those that have them.
    """
    paths = services().source_paths
    target = paths.schemas / "nodes.json"
    known = json.loads(target.read_text("utf-8"))
    asked = {*nodes, *used_classes(paths)}
    object_info, found_version = _read(source, version, {*asked, *known["nodes"]})
    absent = sorted(asked - set(object_info) - set(known["nodes"]))
    if absent:
        raise NodesMissing(f"{source} has no node {', '.join(absent)}.", nodes=absent)
    folders = read_yaml((paths.schemas / "files.yaml").read_text("utf-8"))
    fresh = learn(
        known, object_info, version=found_version, wanted={*asked, *known["nodes"]}, folders=folders
    )
    write_file(target, nodes_text(fresh).encode("utf-8"))
    _report(known["nodes"], fresh["nodes"], found_version)


def used_classes(paths: SourcePaths) -> set[str]:
    """Every node class that a template names."""
    return {
        name
        for template in paths.templates.glob("*.json.j2")
        for name in _CLASS_TYPE.findall(template.read_text("utf-8"))
    }


def nodes_text(facts: Mapping[str, Any]) -> str:
    """The content of nodes.json, an input a line, so that a change can be read as one."""
    nodes = []
    for name, node in facts["nodes"].items():
        inputs = [f"    {json.dumps(key)}: {_line(value)}" for key, value in node["inputs"].items()]
        joined = ",\n".join(inputs)
        block = f"{{\n{joined}\n   }}" if inputs else "{}"
        nodes.append(
            f"  {json.dumps(name)}: {{\n   \"inputs\": {block},\n"
            f"   \"outputs\": {_line(node['outputs'])}, \"output_node\": {_line(node['output_node'])}\n  }}"
        )  # fmt: skip
    return f'{{\n "versions": {_line(facts["versions"])},\n "nodes": {{\n' + ",\n".join(nodes) + "\n }\n}\n"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _read(source: str, version: str | None, wanted: set[str]) -> tuple[dict[str, Any], str]:
    if source.startswith(("http://", "https://")):
        engine = engine_at(source)
        return engine.signatures(wanted, fresh=True), version or engine.stats().version
    if version is None:
        raise InvalidValue("Say with --version which ComfyUI the file is from.", param="version")
    try:
        object_info = json.loads(Path(source).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogueInvalid(f"{source} is no answer of /object_info: {error}") from error
    return {name: entry for name, entry in object_info.items() if name in wanted}, version


def _report(before: Mapping[str, Any], after: Mapping[str, Any], version: str) -> None:
    for name, node in after.items():
        if name not in before:
            click.echo(f"new      {name}")
        elif node != before[name]:
            click.echo(f"changed  {name}")
    click.echo(f"{len(after)} nodes; {version} is in.")
