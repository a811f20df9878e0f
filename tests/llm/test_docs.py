"""The examples in docs/llm_stacks.md are valid, and it explains every key of a driver."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engines.entries import read_engines
from llm import built_in_drivers, read_stacks
from llm.drivers import BusyProbe, Call, Driver, Listing
from schemas.yaml_document import read_yaml

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "llm_stacks.md").read_text("utf-8")
DOCUMENTS = [
    read_yaml(example)
    for example in re.findall(r"^```yaml\n((?:llm|engines?):\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
]
EXAMPLES = [document["llm"]["stacks"] for document in DOCUMENTS if "stacks" in document["llm"]]
GPUS = [entry.gpu for document in DOCUMENTS for entry in read_engines(document.get("engines", ()), {})]


@pytest.mark.parametrize("config", EXAMPLES)
def test_an_example_is_accepted(config: list[dict[str, str]]) -> None:
    keys = {entry["key_env"]: "sk-1" for entry in config if "key_env" in entry}
    gpus = GPUS if any("gpu" in entry for entry in config) else ()
    assert len(read_stacks(config, keys, gpus)) == len(config)


def test_each_built_in_driver_has_an_example() -> None:
    drivers = {entry["driver"] for config in EXAMPLES for entry in config}
    assert drivers == set(built_in_drivers()) | {"http", "command"}


@pytest.mark.parametrize("kind", [Call, Listing, BusyProbe, Driver])
def test_each_key_of_a_driver_is_explained(kind: type) -> None:
    named_differently = {"method", "path", "listing", "health", "unload", "needs"}
    for key in set(kind.__annotations__) - named_differently:
        assert f"`{key}" in PAGE
