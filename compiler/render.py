"""Renders a template to the nodes of a graph. Jinja runs in its sandbox, and every `{{ value }}` becomes JSON, so a
prompt stays text whatever it contains.

A template renders to one or more JSON objects in sequence, so that an optional part is an object of its own and needs
no comma before or after it. The objects are merged; a repeated node id is an error.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
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
    nodes,
)
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.meta import find_referenced_templates
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from compiler.exports import export_error, export_error_in, placeholder_error, quotes_hint
from compiler.json_mistakes import Mistake, json_mistake, repeated_key
from compiler.slots import Slot, marker_json, reads_output, refuses_slots
from compiler.sources import TEMPLATE_SUFFIX
from compiler.text_limits import TextBudget, size_of
from errors import TemplateInvalid, shorten
from schemas import did_you_mean

_Functions = dict[str, Callable[..., Any]]
_NO_SUCH = re.compile(r"No (?P<kind>filter|test) named '(?P<name>[^']+)'")
"""An error of Jinja"""
_DICT_ATTRIBUTES = frozenset(dir(dict))
_INLINES_AFTER = 5
"""Renderings of a template until its includes are inlined, which takes as long as many of them"""
_RANDOM_FILTERS = ("random",)
_RANDOM_GLOBALS = ("lipsum",)
"""Templates do not have these: equal values must give equal graphs."""


MAX_STEPS = 20_000
"""Steps of one rendering: rounds of loops, calls of macros, included templates. A graph for 16 images and as many LoRAs
needs a few hundred."""


_Repeated = nodes.Template | nodes.For | nodes.Macro | nodes.CallBlock


class _TooManySteps(Exception):
    def __init__(self) -> None:
        super().__init__(
            f"the template takes more than {MAX_STEPS:,} steps (rounds of loops, macro calls, includes); "
            "make its loops shorter"
        )


class _Environment(ImmutableSandboxedEnvironment):
    """Finds what a template includes first in its own folder, and ends renderings that take too many steps or make too
    much text."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(
        self, texts: Mapping[str, str], unreadable: Set[str], extensions: Sequence[type[Extension]] = ()
    ) -> None:
        super().__init__(
            extensions=extensions,
            # An error then names the template in its traceback.
            loader=FunctionLoader(lambda name: (texts[name], name, lambda: True) if name in texts else None),
            undefined=StrictUndefined,
            finalize=self._as_json,
            autoescape=False,  # JSON, not HTML: `finalize` does the escaping
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._names = {*texts, *unreadable}
        self.texts = texts
        self._steps = threading.local()
        self.budget = TextBudget()
        self.concat = self.budget.concatenated  # type: ignore[method-assign]
        self.joined = self.budget.joined
        self.sliced = self.budget.sliced
        for name in _RANDOM_FILTERS:
            del self.filters[name]
        for name in _RANDOM_GLOBALS:
            del self.globals[name]
        filters, tests = cast(_Functions, self.filters), cast(_Functions, self.tests)
        filters.update(
            {name: refuses_slots(self.budget.filter(name, each)) for name, each in filters.items()}
        )
        tests.update({name: refuses_slots(each) for name, each in tests.items()})

    def start_counting(self) -> None:
        """Call it before each rendering."""
        self._steps.taken = 0
        self.budget.restart()

    def _as_json(self, value: Any) -> str:
        if type(value) not in _SCALARS and not isinstance(value, Slot | Undefined):
            self.budget.charge(size_of(value))
        text = _as_json(value)
        self.budget.charge(len(text))
        return text

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.budget.operate(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # Arguments of a template may have any name.
        args = __self.budget.call(__obj, args, kwargs)
        return __self.budget.returned(super().call(__context, __obj, *args, **kwargs))

    @property
    def counted_step(self) -> bool:
        """True; compiled templates read it at each step. Raises _TooManySteps."""
        self._steps.taken = taken = getattr(self._steps, "taken", 0) + 1
        if taken > MAX_STEPS:
            raise _TooManySteps
        return True

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        found: list[_Repeated] = [template]
        for kind in (nodes.For, nodes.Macro, nodes.CallBlock):
            found += template.find_all(kind)
        for repeated in found:
            step = nodes.EnvironmentAttribute("counted_step", lineno=repeated.lineno)
            repeated.body.insert(0, nodes.ExprStmt(step, lineno=repeated.lineno))
            if isinstance(repeated, nodes.For) and repeated.test is not None:
                repeated.test = nodes.And(step, repeated.test, lineno=repeated.lineno)
        _replace_unmeasured(template)
        template.set_environment(self)
        return template

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox's, which allows the same at once: an entry of a dict that is no attribute of it, and what a
        template has set in a namespace. Templates read little else, and its checks would take a sixth of the time."""
        kind = type(obj)
        if kind is dict:
            if attribute in obj and attribute not in _DICT_ATTRIBUTES:
                return obj[attribute]
        elif kind is Namespace and attribute[:1] != "_":
            try:
                return getattr(obj, attribute)
            except AttributeError:
                pass
        return super().getattr(obj, attribute)

    def join_path(self, template: str, parent: str) -> str:
        folder, slash, _ = parent.rpartition("/")
        beside = f"{folder}{slash}{template}"
        return beside if beside in self._names else template


def _replace_unmeasured(node: nodes.Node) -> None:
    """Have the environment do what `~` does, and measure what is sliced: Jinja lets no environment intercept these."""
    for field, value in node.iter_fields():
        children = value if isinstance(value, list) else [value]
        for child in children:
            if isinstance(child, nodes.Node):
                _replace_unmeasured(child)
        replaced = [_measured(child) for child in children]
        setattr(node, field, replaced if isinstance(value, list) else replaced[0])


def _measured(node: Any) -> Any:
    if isinstance(node, nodes.Concat):
        return _call("joined", node.nodes, node.lineno)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        node.node = _call("sliced", [node.node], node.lineno)
    return node


def _call(name: str, args: list[nodes.Expr], lineno: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=lineno)
    return nodes.Call(function, args, [], None, None, lineno=lineno)


class _InliningEnvironment(_Environment):
    """Its templates render to the same as those of `_Environment`, faster: the templates that they include are part of
    them. Their errors name neither the included template nor its line."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        self._left = _MAX_INLINED
        template = super()._parse(source, name, filename)
        if any(True for _ in template.find_all((nodes.Block, nodes.Extends, nodes.Macro, nodes.CallBlock))):
            return template
        return self._inlined(template, (name or "",))

    def _inlined(self, template: nodes.Template, within: tuple[str, ...]) -> nodes.Template:
        for parent in (template, *template.find_all((nodes.If, nodes.For, nodes.With, nodes.Scope))):
            for field in ("body", "else_"):
                if children := getattr(parent, field, None):
                    setattr(parent, field, [self._part(child, within) for child in children])
        return template

    def _part(self, node: nodes.Node, within: tuple[str, ...]) -> nodes.Node:
        """The body of the template that `node` includes, with variables of its own; other nodes as they are."""
        if not isinstance(node, nodes.Include) or not _is_plain(node) or self._left <= 0:
            return node
        name = self.join_path(cast(nodes.Const, node.template).value, within[-1])
        if name in within or name not in self.texts:
            return node
        self._left -= 1
        part = self._inlined(super()._parse(self.texts[name], name, name), (*within, name))
        names = {each.name for each in part.find_all(nodes.Name)}
        is_left = "loop" in names or any(True for _ in part.find_all(_NOT_INLINED))
        return node if is_left else nodes.Scope(part.body, lineno=node.lineno)


_MAX_INLINED = 100
"""Includes for each template: parts that include each other twice, and so on, would be many"""
_NOT_INLINED = (
    nodes.Block,
    nodes.Extends,
    nodes.Macro,
    nodes.CallBlock,
    nodes.Import,
    nodes.FromImport,
    nodes.Include,  # It would be looked for in the folder of another template.
)
"""What may differ in a part that is inlined"""


def _is_plain(node: nodes.Include) -> bool:
    is_named = isinstance(node.template, nodes.Const) and isinstance(node.template.value, str)
    return is_named and node.with_context and not node.ignore_missing


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
        self._inlined: dict[str, Template | None] = {}
        self._renderings: dict[str, int] = {}
        self._includes: dict[str, list[str]] = {}

    @cached_property
    def _environment(self) -> ImmutableSandboxedEnvironment:
        return self._new_environment()

    @cached_property
    def _marking_environment(self) -> ImmutableSandboxedEnvironment:
        """Its templates render with the places that the text comes from."""
        return self._new_environment(_LineMarks)

    @cached_property
    def _inlining_environment(self) -> ImmutableSandboxedEnvironment:
        return self._new_environment(kind=_InliningEnvironment)

    def _new_environment(
        self, *extensions: type[Extension], kind: type[_Environment] = _Environment
    ) -> ImmutableSandboxedEnvironment:
        return kind(self._texts, self._unreadable, extensions)

    def render(self, template: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The nodes that `template` renders to with `values`. Raises TemplateInvalid."""
        try:
            text = self._text(template, values)
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

    def _text(self, template: str, values: Mapping[str, Any]) -> str:
        plain = self._template(template)
        if (inlined := self._with_inlined(template)) is not None:
            with contextlib.suppress(Exception):  # that of the plain template names the place
                return _rendered(inlined, values)
        return _rendered(plain, values)

    def _with_inlined(self, template: str) -> Template | None:
        """The template with its includes inlined; None if it is not rendered often."""
        if template not in self._inlined:
            self._renderings[template] = self._renderings.get(template, 0) + 1
            if self._renderings[template] <= _INLINES_AFTER:
                return None
            self._inlined[template] = None
            with contextlib.suppress(Exception):
                self._inlined[template] = self._inlining_environment.get_template(template)
        return self._inlined[template]

    def _place(self, template: str, values: Mapping[str, Any], text: str, position: int) -> str:
        """`FILE:LINE` of what `template` renders to `text` at this position, which an included template may have made; only
        the name of `template` if that is not known."""
        try:
            marked = _rendered(self._marking_environment.get_template(template), values)
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


def _rendered(template: Template, values: Mapping[str, Any]) -> str:
    """Raises what Jinja raises, and _TooManySteps."""
    cast(_Environment, template.environment).start_counting()
    return template.render(values)


def _as_json(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return _quoted(value)
    if kind is int:
        return str(value)
    if kind is float and math.isfinite(value):
        return repr(value)
    if kind is list and len(value) == 2 and type(value[0]) is str and type(value[1]) is int:  # a link
        return f"[{_quoted(value[0])}, {value[1]}]"
    if isinstance(value, Undefined):
        str(value)  # StrictUndefined raises here and names the variable; the error of json would not
    if isinstance(value, Slot):
        return marker_json(value)
    if kind is float:
        raise ValueError(f"a number is too large ({value}); write a smaller one")
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


_SCALARS = (str, int, float, bool, type(None))
_quoted = json.encoder.encode_basestring
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)
