"""Template -> nodes. Jinja in its sandbox; every `{{ value }}` becomes JSON, so a prompt stays text whatever is in it.

A template renders to one or more JSON objects, one after another, so that optional parts are whole objects and no comma
has to be mended; the objects are merged, and a node id given twice is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from jinja2 import DictLoader, StrictUndefined, Template, TemplateError, TemplateNotFound, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from errors import TemplateInvalid


class TemplateRenderer:
    """Renders the templates it was made with; compiles each once, when first used."""

    def __init__(self, templates: Mapping[str, str]) -> None:
        self._texts = dict(templates)
        self._ready: dict[str, Template] = {}

    @cached_property
    def _environment(self) -> ImmutableSandboxedEnvironment:
        return ImmutableSandboxedEnvironment(
            loader=DictLoader(self._texts),
            undefined=StrictUndefined,
            finalize=_as_json,
            autoescape=False,  # JSON, not HTML: `finalize` does the escaping
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def render(self, template: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The nodes that `template` makes of `values`. Raises TemplateInvalid."""
        try:
            text = self._template(template).render(values)
        except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
            raise TemplateInvalid(_where(template, error), template=template) from error
        return _merge_objects(text, template)

    def _template(self, name: str) -> Template:
        if name not in self._ready:
            self._ready[name] = self._environment.get_template(name)
        return self._ready[name]


def _as_json(value: Any) -> str:
    if isinstance(value, Undefined):
        str(value)  # StrictUndefined raises here, and names what is missing; json would only say "Undefined"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _where(template: str, error: Exception) -> str:
    if isinstance(error, TemplateNotFound):
        return f"{template}: there is no template {error.name!r}"
    line = getattr(error, "lineno", None)
    name = getattr(error, "name", None) or template
    return f"{name}{f':{line}' if line else ''}: {error}"


def _merge_objects(text: str, template: str) -> dict[str, Any]:
    decoder = json.JSONDecoder(object_pairs_hook=_refuse_twice)
    nodes: dict[str, Any] = {}
    position = _skip_space(text, 0)
    while position < len(text):
        try:
            part, position = decoder.raw_decode(text, position)
        except ValueError as error:
            raise TemplateInvalid(
                f"{template}: not JSON once rendered: {error}", template=template
            ) from error
        if not isinstance(part, dict):
            raise TemplateInvalid(
                f"{template}: renders to {part!r} where an object of nodes is wanted", template=template
            )
        for node in part:
            if node in nodes:
                raise TemplateInvalid(f"{template}: the node id {node!r} is given twice", template=template)
        nodes |= part
        position = _skip_space(text, position)
    return nodes


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return made
