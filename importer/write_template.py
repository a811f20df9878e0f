"""Writes a workflow as a template in the project's style: readable node ids, literal JSON, `{{ }}` where a request or the
catalogue decides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.exports import placeholder_error
from compiler.links import is_link
from compiler.values import Nodes
from importer.bindings import Bindings
from importer.graph_view import Place
from importer.node_order import sources_first
from importer.optional_images import OptionalImages

_WIDTH = 118
_JINJA = re.compile(r"\{[{%#]")
_MASK_NODE = "mask"


@dataclass(frozen=True)
class WrittenTemplate:
    """`text`: the template. `ids`: node id of the workflow -> id in the template."""

    text: str
    ids: Mapping[str, str]


def write_template(
    nodes: Nodes, bindings: Bindings, roles: Mapping[Place, str], optional: OptionalImages, title: str
) -> WrittenTemplate:
    """The template of a workflow. `roles`: inputs that name files of weights -> the role of the file."""
    ids = readable_ids(nodes, bindings, roles)
    writer = _Writer(nodes, bindings, roles, optional, ids)
    return WrittenTemplate(writer.text(title), ids)


class _Writer:
    def __init__(
        self,
        nodes: Nodes,
        bindings: Bindings,
        roles: Mapping[Place, str],
        optional: OptionalImages,
        ids: Mapping[str, str],
    ) -> None:
        self._nodes, self._bindings, self._optional, self._ids = nodes, bindings, optional, ids
        self._variables: dict[Place, str] = {
            place: field.name for field in bindings.fields.values() for place in field.places
        }
        self._variables |= {place: f"files.{role}" for place, role in roles.items()}
        for index, place in enumerate(bindings.images):
            self._variables[place] = "image" if index == 0 else f"images[{index}]"
        if bindings.mask_file is not None:
            self._variables[bindings.mask_file] = "mask"

    def text(self, title: str) -> str:
        ordered = list(sources_first(self._nodes, self._nodes))
        parts = [f"{{# {_comment(title)} #}}\n"]
        if self._bindings.mask_from is not None:
            parts.append(self._mask())
        parts.append(self._object(node for node in ordered if node not in self._optional.nodes))
        for number in sorted(set(self._optional.nodes.values())):
            nodes = (node for node in ordered if self._optional.nodes.get(node) == number)
            parts.append(f"{{% if {_has_images(number)} %}}\n{self._object(nodes)}{{% endif %}}\n")
        return "".join(parts)

    def _object(self, nodes: Iterable[str]) -> str:
        return "{\n" + ",\n".join(self._node(node) for node in nodes) + "\n}\n"

    def _mask(self) -> str:
        """The mask of a request stands in place of the transparency of the picture."""
        loaded = self._ids[self._bindings.mask_from or ""]
        return (
            f'{{% set at = namespace(mask=["{loaded}", 1]) %}}\n'
            "{% if mask %}\n"
            f'{{"{_MASK_NODE}": {{"class_type": "LoadImageMask", '
            '"inputs": {"image": {{ mask }}, "channel": "red"}}}\n'
            f'{{% set at.mask = ["{_MASK_NODE}", 0] %}}\n'
            "{% endif %}\n"
        )

    def _node(self, node: str) -> str:
        entry = self._nodes[node]
        inputs = [
            f"{_json(name)}: {self._value((node, name), value)}"
            for name, value in entry["inputs"].items()
            if (node, name) not in self._optional.inputs
        ]
        # In front, because each brings its own comma.
        if inputs:
            inputs[0] = "".join(self._optional_inputs(node)) + inputs[0]
        head = f'  {_json(self._ids[node])}: {{"class_type": {_json(entry["class_type"])}, "inputs": {{'
        line = f"{head}{', '.join(inputs)}}}}}"
        if len(line) <= _WIDTH:
            return line
        one_line = f'    "inputs": {{{", ".join(inputs)}}}'
        if len(one_line) <= _WIDTH:
            start = f'  {_json(self._ids[node])}: {{\n    "class_type": {_json(entry["class_type"])},\n'
            return f"{start}{one_line}\n  }}"
        body = "\n".join(_wrapped(inputs, "      "))
        return (
            f"  {_json(self._ids[node])}: {{\n"
            f'    "class_type": {_json(entry["class_type"])},\n'
            f'    "inputs": {{\n{body}\n    }}\n  }}'
        )

    def _optional_inputs(self, node: str) -> Iterator[str]:
        for name, value in self._nodes[node]["inputs"].items():
            number = self._optional.inputs.get((node, name))
            if number is not None:
                text = f"{_json(name)}: {self._value((node, name), value)}, "
                yield f"{{% if {_has_images(number)} %}}{text}{{% endif %}}"

    def _value(self, place: Place, value: Any) -> str:
        value = self._bindings.changed.get(place, value)
        if place in self._variables:
            return f"{{{{ {self._variables[place]} }}}}"
        if is_link(value, self._nodes):
            if value[0] == self._bindings.mask_from and value[1] == 1:
                return "{{ at.mask }}"
            return _json([self._ids[value[0]], value[1]])
        text = _json(value)
        if has_template_syntax(text):
            return f"{{{{ {_expression(value)} }}}}"
        return text


def has_template_syntax(text: str) -> bool:
    """Whether Jinja, or the check for placeholders of other programs, would not take `text` as it is."""
    return bool(_JINJA.search(text) or placeholder_error(text))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _expression(value: Any) -> str:
    """A Jinja expression for a value whose text would be read as Jinja, or as a placeholder of another program."""
    if isinstance(value, str):
        # Divided, so that no part looks like a placeholder such as %prompt%.
        return " ~ ".join(ascii(part) for part in re.split(r"(?<=%)", value) if part) or "''"
    if isinstance(value, list):
        return "[" + ", ".join(map(_expression, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!a}: {_expression(entry)}" for key, entry in value.items()) + "}"
    return "none" if value is None else _json(value)


def _has_images(number: int) -> str:
    return f"images | length >= {number}"


def _comment(text: str) -> str:
    """A text that cannot end the comment of a template."""
    return re.sub(r"[{}#%\s]+", " ", text).strip()


def _wrapped(items: Sequence[str], indent: str) -> Iterator[str]:
    """The items with commas in lines of at most _WIDTH characters; a longer one has a line of its own."""
    line = indent
    for index, item in enumerate(items):
        piece = item + ("," if index < len(items) - 1 else "")
        if line != indent and len(line) + 1 + len(piece) > _WIDTH:
            yield line
            line = indent
        line += piece if line == indent else f" {piece}"
    yield line


# --- readable ids ---------------------------------------------------------------------------------------


def readable_ids(nodes: Nodes, bindings: Bindings, roles: Mapping[Place, str]) -> dict[str, str]:
    """An id for each node that says what it does, by its role in the workflow or by its class."""
    wanted = dict(_ids_by_role(nodes, bindings, roles))
    ids: dict[str, str] = {}
    taken = {_MASK_NODE}
    numbers: dict[str, int] = {}
    for node in sources_first(nodes, nodes):
        base = wanted.get(node) or _snake(nodes[node]["class_type"])
        name = base
        while name in taken:
            numbers[base] = numbers.get(base, 1) + 1
            name = f"{base}_{numbers[base]}"
        taken.add(name)
        ids[node] = name
    return ids


def _ids_by_role(nodes: Nodes, bindings: Bindings, roles: Mapping[Place, str]) -> Iterator[tuple[str, str]]:
    for (node, _), role in roles.items():
        yield node, role
    for name in ("negative_prompt", "prompt"):
        field = bindings.fields.get(name)
        if field is not None:
            node = field.places[0][0]
            has_clip = "clip" in nodes[node]["inputs"]
            yield node, ("positive" if name == "prompt" else "negative") if has_clip else name
    if bindings.size.node is not None and "width" in bindings.fields:
        yield bindings.size.node, "latent"
    if bindings.sampling is not None:
        yield from ((node, "sampler") for node in bindings.sampling.chain)
    yield from ((node, "image") for node, _ in bindings.images)
    yield bindings.output, "picture"


def _snake(node_class: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", node_class)
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_") or "node"
