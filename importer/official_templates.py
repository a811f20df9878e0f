"""ComfyUI's official workflow templates: from a running ComfyUI, or from the PyPI package
`comfyui-workflow-templates-json` if it is installed."""

from __future__ import annotations

import difflib
import importlib.resources
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from errors import WorkflowUnreadable

PACKAGE = "comfyui_workflow_templates_json"
INSTALL_TEMPLATES = (
    "Without --engine they come from a package: .venv/bin/pip install comfyui-workflow-templates-json."
)
_SIMILAR = 5


@dataclass(frozen=True)
class OfficialTemplate:
    """An entry of the index. `size_bytes`: of its model files, 0 if unknown; `usage`: how often it was used."""

    name: str
    title: str
    category: str
    size_bytes: int
    usage: int
    media_type: str
    is_open: bool
    """It calls no paid service."""


class TemplateLibrary:
    """Reads templates. `read`: the JSON of a template or of `index`, None if there is none of this name."""

    def __init__(self, read: Callable[[str], Any], origin: str) -> None:
        self._read, self.origin = read, origin

    def templates(self) -> list[OfficialTemplate]:
        """All templates, the most used first. Raises WorkflowUnreadable."""
        found = list(self._entries())
        return sorted(found, key=lambda template: -template.usage)

    def _entries(self) -> Iterator[OfficialTemplate]:
        index = self._read("index")
        if not isinstance(index, list):
            raise WorkflowUnreadable(f"{self.origin} has no list of official templates. {INSTALL_TEMPLATES}")
        for category in index:
            for entry in category.get("templates", ()):
                yield _template(entry, str(category.get("title", "")))

    def workflow(self, name: str) -> Any:
        """The JSON of the template `name`. Raises WorkflowUnreadable, which names similar ones."""
        document = None if name == "index" else self._read(name)
        if document is None:
            similar = difflib.get_close_matches(
                name.lower(), [template.name for template in self.templates()], _SIMILAR
            )
            more = f" Similar ones: {', '.join(similar)}." if similar else ""
            raise WorkflowUnreadable(
                f"{self.origin} has no template {name!r}.{more} `easel import-workflow --list-templates` lists them."
            )
        return document


def _template(entry: Mapping[str, Any], category: str) -> OfficialTemplate:
    return OfficialTemplate(
        name=str(entry.get("name", "")),
        title=str(entry.get("title", "")),
        category=category,
        size_bytes=int(entry.get("size") or 0),
        usage=int(entry.get("usage") or 0),
        media_type=str(entry.get("mediaType", "")),
        is_open=entry.get("openSource") is not False,
    )


def packaged_templates() -> TemplateLibrary | None:
    """The templates of the installed package; None if it is not installed."""
    try:
        folder = importlib.resources.files(PACKAGE) / "templates"
    except ModuleNotFoundError:
        return None

    def read(name: str) -> Any:
        file = folder / f"{name}.json"
        if "/" in name or "\\" in name or not file.is_file():
            return None
        return json.loads(file.read_text("utf-8"))

    return TemplateLibrary(read, "The package comfyui-workflow-templates-json")
