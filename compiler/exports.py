"""What people paste into a template: exports in other formats, placeholders of other programs, keys that only ComfyUI's
editor uses. Each is recognised and named with what to do, or dropped as ComfyUI drops it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from compiler.signatures import Signatures

# Widgets of the editor that some of its versions write into API exports: upload buttons, previews, and what happens to a
# seed after a run. ComfyUI ignores them.
_EDITOR_INPUTS = frozenset(
    {
        "upload",
        "control_after_generate",
        "control_before_generate",
        "audioUI",
        "videopreview",
        "image_preview",
    }
)
_EDITOR_INPUT_FORM = re.compile(
    r"\$\$.*|(choose|select|upload)\b.*\b(upload|image|file|video|audio|folder)s?", re.IGNORECASE
)

_TOKEN = re.compile(
    r"""(?P<value>\{\{-?(?P<expression>(?:"[^"\n]{0,200}"|'[^'\n]{0,200}'|[^'"}]|\}(?!\})){0,200}?)-?\}\})
      | (?P<other>\{%.{0,1000}?%\}|\{\#.{0,5000}?\#\})
      | (?P<quote>")
      | (?P<text>(?:\\.|[^"\\\n{]|\{(?![{%\#]))+)
      | (?P<end>\n)
      | .""",
    re.VERBOSE | re.DOTALL,
)
"""The parts of a template: `{{ values }}`, other tags, quotes, plain text, ends of lines. Their lengths are limited, so
that a template with many unclosed tags is read quickly."""
_OTHER_QUOTES = re.compile(
    r"(?:'|[\u2018-\u201f])\{\{-?\s*(?P<expression>[^{}'\"]{1,200}?)\s*-?\}\}(?:'|[\u2018-\u201f])"
)
"""A value in quotes that JSON does not have, as they are written in Python or by a word processor"""
_COMMENT = re.compile(r"\{#.{0,5000}?#\}", re.DOTALL)
_TOJSON = re.compile(r"\{\{-?\s*(?P<expression>[^{}|]{1,200}?)\s*\|\s*tojson\s*-?\}\}")
_SIMPLE_EXPRESSION = re.compile(r"""[\w.]+(\[[^\[\]]*\])*""")
_PLACEHOLDER = re.compile(
    r'"(?P<name>%{1,2}[A-Za-z][A-Za-z0-9_ ]*%{1,2})"|(?P<inside>%(?:prompt|positive|negative|negative_prompt)%)'
)
_NAMES = {
    "positive": "prompt",
    "positive_prompt": "prompt",
    "negative": "negative_prompt",
    "scale": "cfg",
    "cfg_scale": "cfg",
    "scheduler": "schedule",
    "denoise": "strength",
    "model": "files.checkpoint",
    "vae": "files.vae",
    "batch_size": "batch",
    "batch_count": "batch",
}


def without_editor_inputs(nodes: Mapping[str, Any], signatures: Signatures) -> dict[str, Any]:
    """`nodes` without the inputs that only ComfyUI's editor uses. An input that the node has is never one of them."""
    return {node_id: _without_editor_inputs(node, signatures) for node_id, node in nodes.items()}


def _without_editor_inputs(node: Any, signatures: Signatures) -> Any:
    if not isinstance(node, dict) or not isinstance(inputs := node.get("inputs"), dict):
        return node
    signature = signatures.get(str(node.get("class_type")))
    if signature is None or signature.more_inputs or inputs.keys() <= signature.inputs.keys():
        return node
    kept = {
        name: value
        for name, value in inputs.items()
        if name in signature.inputs or isinstance(value, list) or not _is_editor_input(name)
    }
    return {**node, "inputs": kept} if len(kept) < len(inputs) else node


def _is_editor_input(name: str) -> bool:
    return name in _EDITOR_INPUTS or _EDITOR_INPUT_FORM.fullmatch(name) is not None


def export_error_in(text: str) -> str | None:
    """`export_error` for the text of a template that is plain JSON, which need not be a template at all."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return export_error(document) if isinstance(document, dict) else None


def export_error(document: Mapping[str, Any]) -> str | None:
    """Why this is not a graph in API format but another export, and what to do; None if it is none that is known."""
    if isinstance(document.get("nodes"), list) and {"links", "last_node_id", "version"} & set(document):
        return (
            "this is a workflow of ComfyUI's editor, not an API export: open it in ComfyUI and use Workflow > "
            "Export (API) (in older versions: Save (API Format), after enabling the dev mode options)"
        )
    for key, value in document.items():
        if _is_graph(value):
            return f"the graph is inside the key {key!r}: remove everything around the braces that belong to {key!r}"
        if isinstance(value, list) and any(map(_is_graph, value)):
            return f"this is an entry of ComfyUI's history: keep only the object of nodes in the list {key!r}"
    return None


def _is_graph(value: Any) -> bool:
    """Whether `value` is an object of nodes in API format."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in value.values())


def placeholder_error(text: str) -> str | None:
    """Where the text of a template contains placeholders of other programs such as `%prompt%`, and what to write."""
    remedies: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        for match in [] if "filename_prefix" in line else _PLACEHOLDER.finditer(line):
            found = match["name"] or match["inside"]
            name = found.strip("%").lower().replace(" ", "_")
            value = f"{{{{ {_NAMES.get(name, name)} }}}}"
            remedies.setdefault(found, f"line {number}: for {found} write {value}, without quotes")
    if not remedies:
        return None
    return f"placeholders of another program: {'; '.join(remedies.values())}"


@lru_cache(maxsize=64)  # the check of a catalogue asks hundreds of times about the same template
def quotes_hint(text: str) -> str:
    """A sentence about the first mistake in the text of a template that makes its JSON invalid, or its texts wrong, although
    the text looks right: a `{{ value }}` in quotes or with a filter for JSON, a byte order mark; empty if there is none."""
    for number, parts in _strings_with_values(text):
        if parts is None:
            return (
                f". Line {number}: a {{{{ value }}}} in quotes is not possible, because every value brings its own "
                'quotes; join texts with ~ outside the quotes, such as {{ "photo of " ~ prompt }}'
            )
        return (
            f". Line {number}: write {{{{ {' ~ '.join(parts)} }}}} without the quotes around it; every value brings "
            "its own"
        )
    without_comments = _COMMENT.sub(lambda match: "\n" * match[0].count("\n"), text)
    for number, line in enumerate(without_comments.splitlines(), 1):
        if match := _OTHER_QUOTES.search(line):
            written = f"{{{{ {_without_tojson(match['expression'])} }}}}"
            return (
                f". Line {number}: write {written} without the quotes around it; every value brings its own"
            )
        if match := _TOJSON.search(line):
            written = f"{{{{ {match['expression']} }}}}"
            return f". Line {number}: write {written} without the filter; every value becomes JSON without it"
    if (position := text.find("\ufeff")) >= 0:
        number = text.count("\n", 0, position) + 1
        return f". Line {number} contains a byte order mark (U+FEFF), which is invisible: delete it"
    return ""


def _strings_with_values(text: str) -> Iterator[tuple[int, list[str] | None]]:
    """The strings of a template in quotes that contain a `{{ value }}`: the line, and the Jinja expressions whose texts
    together are the string; None instead if it contains other tags too."""
    number, in_string, has_tags = 1, False, False
    parts: list[str] = []
    for match in _TOKEN.finditer(text):
        if match["quote"] or match["end"]:
            if match["quote"] and in_string and any(not part.startswith('"') for part in parts):
                yield number, None if has_tags else parts
            in_string = bool(match["quote"]) and not in_string
            parts, has_tags = [], False
        elif in_string and match["value"]:
            parts.append(_operand(_without_tojson(match["expression"])))
        elif in_string and match["text"]:
            parts.append(f'"{match["text"]}"')
        elif in_string:
            has_tags = True
        number += match[0].count("\n")


def _without_tojson(expression: str) -> str:
    return re.sub(r"\s*\|\s*tojson\s*$", "", expression.strip())


def _operand(expression: str) -> str:
    return expression if _SIMPLE_EXPRESSION.fullmatch(expression) else f"({expression})"
