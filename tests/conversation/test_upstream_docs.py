"""docs/llm_stacks.md explains every key, route and preset of an upstream, and its examples are valid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from conversation import ROUTES, read_aliases, read_upstreams
from conversation.upstreams import DEFAULT_CONNECT_TIMEOUT_S, DEFAULT_SILENCE_TIMEOUT_S, presets
from llm import built_in_drivers
from schemas import load_schema
from settings import load_settings

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "llm_stacks.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```yaml\n((?:llm|engine):\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
"""Of easel.yaml; the page has files of other programs, too"""
SECTION = PAGE[PAGE.index("## Upstreams") : PAGE.index("## Models and aliases")]


def rows(section: str) -> dict[str, list[str]]:
    """The rows of the tables in a section, by their first cell."""
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {cells[0]: cells[1:] for cells in lines}


def upstream_entries(config: dict[str, Any]) -> list[Any]:
    return [*config.get("upstreams", []), *config.get("stacks", [])]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_accepted(example: str, tmp_path: Path) -> None:
    file = tmp_path / "easel.yaml"
    file.write_text(example)
    keys = dict.fromkeys(re.findall(r"key_env: (\w+)", example), "sk-1")
    settings = load_settings({"EASEL_CONFIG": str(file), **keys})
    upstreams = read_upstreams(settings["llm.upstreams"], settings["llm.stacks"], keys)
    assert upstreams or "command" in example
    read_aliases(settings["llm.aliases"], upstreams)


def test_the_table_has_every_key_of_the_schema() -> None:
    keys = [cell.strip("`") for cell in rows(SECTION)]
    schema = load_schema("upstreams")
    assert set(keys) == set(schema["items"]["properties"])
    in_stack = schema["$defs"]["of_stack"]["oneOf"][1]["properties"]
    assert set(keys) - set(in_stack) == {"name", "stack"}
    assert float(rows(SECTION)["`connect_timeout_s`"][0]) == DEFAULT_CONNECT_TIMEOUT_S
    assert float(rows(SECTION)["`silence_timeout_s`"][0]) == DEFAULT_SILENCE_TIMEOUT_S


def test_each_preset_has_an_example() -> None:
    named = set(re.findall(r"preset: ([a-z-]+)", SECTION))
    assert named == set(presets())
    assert set(built_in_drivers()) <= named


def test_each_route_is_listed_with_its_alias() -> None:
    section = PAGE[PAGE.index("## What is forwarded") : PAGE.index("## Taking turns")]
    listed = {
        (path.removeprefix("POST "), name.strip("`"), slot.strip("`"))
        for paths, (name, slot) in rows(section).items()
        for path in re.findall(r"`(.*?)`", paths)
    }
    assert listed == {(route.path, route.name, route.slot) for route in ROUTES}
