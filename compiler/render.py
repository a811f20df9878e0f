"""Renders a template to the nodes of a graph. Jinja runs in its sandbox, and every `{{ value }}` becomes JSON, so a
prompt stays text whatever it contains.

A template renders to one or more JSON objects in sequence, so that an optional part is an object of its own and needs
no comma before or after it. The objects are merged; a repeated node id is an error.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Set
from functools import cached_property
from typing import Any, cast

from jinja2 import (
    DictLoader,
    StrictUndefined,
    Template,
    TemplateNotFound,
    TemplateSyntaxError,
    Undefined,
)
from jinja2.meta import find_referenced_templates
from jinja2.sandbox import ImmutableSandboxedEnvironment

from compiler.exports import export_error, export_error_in, placeholder_error, quotes_hint
from compiler.slots import Slot, marker_json, reads_output, refuses_slots
from errors import TemplateInvalid
from schemas import did_you_mean

_Functions = dict[str, Callable[..., Any]]
_NO_SUCH = re.compile(r"No (?P<kind>filter|test) named '(?P<name>[^']+)'")
"""An error of Jinja"""
_RANDOM_FILTERS = ("random",)
_RANDOM_GLOBALS = ("lipsum",)
"""Templates do not have these: equal values must give equal graphs."""


class _Environment(ImmutableSandboxedEnvironment):
    """Finds what a template includes first in its own folder."""

    def __init__(self, texts: Mapping[str, str], unreadable: Set[str]) -> None:
        super().__init__(
            loader=DictLoader(texts),
            undefined=StrictUndefined,
            finalize=_as_json,
            autoescape=False,  # JSON, not HTML: `finalize` does the escaping
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._names = {*texts, *unreadable}

    def join_path(self, template: str, parent: str) -> str:
        folder, slash, _ = parent.rpartition("/")
        beside = f"{folder}{slash}{template}"
        return beside if beside in self._names else template


class TemplateRenderer:
    """Renders a set of templates. Compiles each when it is first used.

    The name of a template of the owner's begins with the name of the folder: `catalogue.d/mine.json.j2`. What it includes
    is looked for there first, then among the shipped templates; these include only each other. `unreadable`: names of
    files of that folder which exist, but cannot be read.
    """

    def __init__(self, templates: Mapping[str, str], unreadable: Set[str] = frozenset()) -> None:
        self._texts, self._unreadable = dict(templates), unreadable
        self._compiled: dict[str, Template] = {}
        self._includes: dict[str, list[str]] = {}

    @cached_property
    def _environment(self) -> ImmutableSandboxedEnvironment:
        environment = _Environment(self._texts, self._unreadable)
        for name in _RANDOM_FILTERS:
            del environment.filters[name]
        for name in _RANDOM_GLOBALS:
            del environment.globals[name]
        for functions in (cast(_Functions, environment.filters), cast(_Functions, environment.tests)):
            functions.update({name: refuses_slots(each) for name, each in functions.items()})
        return environment

    def render(self, template: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The nodes that `template` renders to with `values`. Raises TemplateInvalid."""
        try:
            text = self._template(template).render(values)
        except TemplateInvalid:
            raise
        # The expressions of a template may raise anything, and Python refuses to compile some of what Jinja makes of one.
        except Exception as error:
            message = f"{_located_message(template, error)}{self._suggestion(error)}"
            raise TemplateInvalid(message, template=template) from error
        try:
            nodes = _merge_objects(text, template)
        except TemplateInvalid as error:
            hint = self.quotes_hint(template)
            raise TemplateInvalid(f"{error.message}{hint}", template=template) from error
        if wrong := export_error(nodes):
            raise TemplateInvalid(f"{template}: {wrong}", template=template)
        return nodes

    def _suggestion(self, error: Exception) -> str:
        """The template, filter or test that was probably meant."""
        if isinstance(error, TemplateNotFound):
            return did_you_mean(error.name, self._texts)
        match = _NO_SUCH.search(str(error))
        if match is None:
            return ""
        environment = self._environment
        return did_you_mean(
            match["name"], environment.filters if match["kind"] == "filter" else environment.tests
        )

    def prepare(self, templates: Iterable[str]) -> None:
        """Compile these templates and what they include. Those that are wrong are left to `render`, which says why."""
        for name in {part for template in templates for part, _ in self.content(template)}:
            with contextlib.suppress(Exception):
                self._environment.get_template(name)

    def reads_output(self, template: str) -> bool:
        """Whether `template`, or a template that it includes, may compute with what it has written: then its graph cannot
        be rendered with slots. Raises what Jinja raises for a template that is wrong."""
        return any(reads_output(self._environment.parse(text)) for _, text in self.content(template))

    def quotes_hint(self, template: str) -> str:
        """A sentence for an error message, if the template, or one that it includes, has a `{{ value }}` in quotes;
        otherwise empty."""
        if hint := quotes_hint(self._texts.get(template, "")):
            return hint
        for name, text in self.content(template):
            if name != template and (hint := quotes_hint(text)):
                return f". In {name}: {hint.removeprefix('. ')}"
        return ""

    def content(self, template: str) -> tuple[tuple[str, str], ...]:
        """Name and text of `template` and of every template that it includes, or of all templates if an include is
        computed. Equal contents render equally."""
        found: dict[str, str] = {}
        pending = [template]
        while pending:
            name = pending.pop()
            if name in found or name not in self._texts:
                continue
            found[name] = self._texts[name]
            pending += self._included(name)
        return tuple(sorted(found.items()))

    def _included(self, name: str) -> list[str]:
        """The templates that the template `name` includes itself."""
        if name not in self._includes:
            try:
                included = list(find_referenced_templates(self._environment.parse(self._texts[name])))
            except Exception:
                included = []  # rendering reports the error
            computed = list(self._texts) if None in included else []
            named = [self._environment.join_path(each, name) for each in included if each is not None]
            self._includes[name] = named + computed
        return self._includes[name]

    def _template(self, name: str) -> Template:
        if name not in self._compiled:
            text = self._texts.get(name, "")
            if error := export_error_in(text) or placeholder_error(text):
                raise TemplateInvalid(f"{name}: {error}", template=name)
            self._compiled[name] = self._environment.get_template(name)
        return self._compiled[name]


def _as_json(value: Any) -> str:
    if isinstance(value, Undefined):
        str(value)  # StrictUndefined raises here and names the variable; the error of json would not
    if isinstance(value, Slot):
        return marker_json(value)
    return _ENCODER.encode(value)


def _located_message(template: str, error: Exception) -> str:
    if isinstance(error, TemplateNotFound):
        return f"{template}: there is no template {error.name!r}"
    if isinstance(error, TemplateSyntaxError):
        return f"{error.name or template}:{error.lineno}: {error}"
    if isinstance(error, SyntaxError | RecursionError):  # Its line is one of the code that Jinja generates.
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        return f"{template}: {reason}: nest blocks, expressions and includes less deeply"
    if isinstance(error, NameError):  # Jinja writes an infinite constant as a name that does not exist.
        return f"{template}: a number is too large ({error}); write a smaller one"
    return f"{template}: {error}"


def _merge_objects(text: str, template: str) -> dict[str, Any]:
    nodes: dict[str, Any] = {}
    position = _skip_space(text, 0)
    while position < len(text):
        try:
            part, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise TemplateInvalid(
                f"{template}: does not render to JSON: {error}", template=template
            ) from error
        if not isinstance(part, dict):
            raise TemplateInvalid(
                f"{template}: renders to {part!r} instead of an object of nodes", template=template
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


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} is given twice")
    return result


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)
