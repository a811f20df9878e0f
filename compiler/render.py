"""Renders a template to the nodes of a graph. Jinja runs in its sandbox, and every `{{ value }}` becomes JSON, so a
prompt stays text whatever it contains.

A template renders to one or more JSON objects in sequence, so that an optional part is an object of its own and needs
no comma before or after it. The objects are merged; a repeated node id is an error.
"""

from __future__ import annotations

import contextlib
import json
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from typing import Any, cast

from jinja2 import (
    FunctionLoader,
    StrictUndefined,
    Template,
    TemplateNotFound,
    TemplateSyntaxError,
    Undefined,
)
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.meta import find_referenced_templates
from jinja2.sandbox import ImmutableSandboxedEnvironment

from compiler.exports import export_error, export_error_in, placeholder_error, quotes_hint
from compiler.json_mistakes import Mistake, json_mistake, repeated_key
from compiler.slots import Slot, marker_json, reads_output, refuses_slots
from compiler.sources import TEMPLATE_SUFFIX
from errors import TemplateInvalid, shorten
from schemas import did_you_mean

_Functions = dict[str, Callable[..., Any]]
_NO_SUCH = re.compile(r"No (?P<kind>filter|test) named '(?P<name>[^']+)'")
"""An error of Jinja"""
_RANDOM_FILTERS = ("random",)
_RANDOM_GLOBALS = ("lipsum",)
"""Templates do not have these: equal values must give equal graphs."""


class _Environment(ImmutableSandboxedEnvironment):
    """Finds what a template includes first in its own folder."""

    def __init__(
        self, texts: Mapping[str, str], unreadable: Set[str], extensions: Sequence[type[Extension]] = ()
    ) -> None:
        super().__init__(
            extensions=extensions,
            # An error then names the template in its traceback.
            loader=FunctionLoader(lambda name: (texts[name], name, lambda: True) if name in texts else None),
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


_MARK = re.compile("\ue000([^\ue000\ue001]*):([0-9]+)\ue001")


class _LineMarks(Extension):
    """Writes name and line of the template before each part of its text and at the start of each line."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        for token in stream:
            if token.type == "data":
                lines = enumerate(token.value.split("\n"), token.lineno)
                marked = "\n".join(f"\ue000{stream.name}:{line}\ue001{text}" for line, text in lines)
                yield Token(token.lineno, token.type, marked)
            else:
                yield token


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
        return self._new_environment()

    @cached_property
    def _marking_environment(self) -> ImmutableSandboxedEnvironment:
        """Its templates render with the places that the text comes from."""
        return self._new_environment(_LineMarks)

    def _new_environment(self, *extensions: type[Extension]) -> ImmutableSandboxedEnvironment:
        environment = _Environment(self._texts, self._unreadable, extensions)
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
            nodes = _merge_objects(text)
        except _NotJson as error:
            if hint := self.quotes_hint(template):  # What the decoder says of a value in quotes leads astray.
                message = f"{template}: does not render to JSON{hint}"
            else:
                place = self._place(template, values, text, error.position)
                message = f"{place}: does not render to JSON: {error.mistake}"
            raise TemplateInvalid(message, template=template) from error
        if wrong := export_error(nodes):
            raise TemplateInvalid(f"{template}: {wrong}", template=template)
        return nodes

    def _place(self, template: str, values: Mapping[str, Any], text: str, position: int) -> str:
        """`FILE:LINE` of what `template` renders to `text` at this position, which an included template may have made; only
        the name of `template` if that is not known."""
        try:
            marked = self._marking_environment.get_template(template).render(values)
        except Exception:
            return template
        if _MARK.sub("", marked) != text:  # a template that reads its own output
            return template
        place, left = template, position
        for match, end in _marks(marked):
            if left < 0:
                break
            place, left = f"{match[1]}:{match[2]}", left - (end - match.end())
        return place

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
    return f"{_place_of(error) or template}: {error}"


def _place_of(error: Exception) -> str:
    """`FILE:LINE` of the expression that raised `error`; empty if it is not known."""
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return next((f"{name}:{line}" for name, line in reversed(places) if name.endswith(TEMPLATE_SUFFIX)), "")


def _marks(marked: str) -> Iterator[tuple[re.Match[str], int]]:
    """Each mark, and where the text behind it ends."""
    marks = list(_MARK.finditer(marked))
    ends = [*(match.start() for match in marks[1:]), len(marked)]
    return zip(marks, ends, strict=True)


class _NotJson(Exception):
    """A template rendered to something else than objects of nodes."""

    def __init__(self, mistake: str, position: int) -> None:
        super().__init__(mistake)
        self.mistake, self.position = mistake, position


def _merge_objects(text: str) -> dict[str, Any]:
    """Raises _NotJson."""
    nodes: dict[str, Any] = {}
    position = _skip_space(text, 0)
    while position < len(text):
        start = position
        try:
            part, position = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise _NotJson(*json_mistake(text, error)) from error
        except _RepeatedKey as error:
            raise _NotJson(*_repeated(text, error.key, start)) from error
        except (ValueError, RecursionError) as error:
            raise _NotJson(str(error), start) from error
        if not isinstance(part, dict):
            raise _NotJson(f"{shorten(json.dumps(part), 60)} is no object of nodes", start)
        for node in part:
            if node in nodes:
                place = repeated_key(text, node, start, nodes)
                raise _NotJson(f"the node id {node!r} is given twice", place)
        nodes |= part
        position = _skip_space(text, position)
    return nodes


def _repeated(text: str, key: str, start: int) -> Mistake:
    return f"the key {key!r} is given twice", repeated_key(text, key, start)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKey(next(name for name in names if names.count(name) > 1))
    return result


class _RepeatedKey(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)
