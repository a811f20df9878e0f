"""Fits a graph to the nodes of a running engine, or reports what the engine lacks.

Versions of ComfyUI differ a little: one requires an input that another does not have. One template serves all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.catalogue import File
from compiler.check import find_errors_in, is_out_of_range
from compiler.engine_files import FileMatch, find_file, with_slashes
from compiler.link_types import LinkTypes
from compiler.links import sources_of
from compiler.signatures import InputSignature, NodeSignature, Signatures, plain_value
from compiler.values import Nodes
from dynamic_inputs import is_link
from errors import FilesMissing, NodesMissing

MAX_DEFAULT_ROUNDS = 8
"""A default can be an option of a dynamic combo that adds inputs with defaults, and so on."""


@dataclass(frozen=True)
class EngineName:
    """What messages call the engine, and what they say about its limits after a missing node and after missing files."""

    name: str
    nodes_hint: str = ""
    files_hint: str = ""


COMFYUI = EngineName("This ComfyUI")
SKETCH = EngineName(
    "Easel's sketch engine",
    nodes_hint=" The sketch engine cannot run this node; a ComfyUI that has it can: set engine.url.",
    files_hint=" It lists only the files that the catalogue has under `files:`; write the name there. A ComfyUI that has "
    "the file draws without that: set engine.url.",
)


SOCKET_OUTPUT = "SaveImageWebsocket"
_SAVING_INPUTS = {"SaveImage": {"images", "filename_prefix"}, "PreviewImage": {"images"}}
"""The output nodes that do nothing but write 8-bit PNGs, and all of their inputs. SaveImageAdvanced also writes 16 bits."""


@dataclass(frozen=True)
class MissingFile:
    """A file of weights that a node uses and the engine does not list. `folder` is None if it is not known."""

    node: str
    input: str
    name: str
    folder: str | None
    match: FileMatch


def fit(
    nodes: Nodes,
    live: Signatures,
    signatures: Signatures,
    files: Mapping[str, File],
    engine: EngineName = COMFYUI,
) -> dict[str, Any]:
    """The graph for the engine whose signatures are `live`; `signatures` are the catalogue's.

    Inputs that the engine requires and the graph does not set get their defaults. Inputs that the engine does not have
    are removed if they have their default value. File names get the engine's spelling. `files` are the model's files, to
    report folder and download URL of a missing one. Raises NodesMissing, also if a node that only the documentation
    describes is another one in the engine, or FilesMissing.
    """
    classes = sorted({node["class_type"] for node in nodes.values()} - set(live))
    if classes:
        message = f"{engine.name} does not have the node {', '.join(classes)}.{engine.nodes_hint}"
        raise NodesMissing(message, nodes=classes)
    _check_outputs(nodes, live, engine)
    missing = list(missing_files(nodes, live, signatures))
    if missing:
        raise _files_missing(missing, files, engine)
    fitted = {
        node_id: {
            **node,
            "inputs": _fitted(
                node_id, node, live[node["class_type"]], signatures[node["class_type"]], engine
            ),
        }
        for node_id, node in nodes.items()
    }
    _check_documented(fitted, live, signatures, engine)
    return fitted


def _check_documented(nodes: Nodes, live: Signatures, signatures: Signatures, engine: EngineName) -> None:
    """What the documentation says about a node may be wrong: compare each such node, and those that it is linked to, with
    what the engine says."""
    documented = {node_id for node_id, node in nodes.items() if signatures[node["class_type"]].documented}
    if not documented:
        return
    users = {node_id for node_id in nodes if documented & set(sources_of(nodes, node_id))}
    for error in find_errors_in(sorted(documented | users), nodes, live, engine.name, LinkTypes(nodes, live)):
        class_type = nodes[error.node]["class_type"]
        raise NodesMissing(
            f"{engine.name}'s {class_type} differs from ComfyUI's documentation. {error}. `easel snapshot-nodes URL` "
            "learns the node as it is; then `easel check-catalogue` says what to correct in the template.",
            node=error.node, class_type=class_type, input=error.input,
        )  # fmt: skip


def _check_outputs(nodes: Nodes, live: Signatures, engine: EngineName) -> None:
    for node_id, node in nodes.items():
        for name, value in node["inputs"].items():
            if not is_link(value) or value[0] not in nodes:
                continue
            class_type = nodes[value[0]]["class_type"]
            if value[1] >= len(live[class_type].outputs):
                raise NodesMissing(
                    f"{engine.name}'s {class_type} has no output {value[1]}, to which node {node_id!r} links {name}."
                    f"{engine.nodes_hint}",
                    node=node_id, class_type=class_type, input=name,
                )  # fmt: skip


def over_socket(nodes: Nodes, output: str, live: Signatures) -> dict[str, Any] | None:
    """A fitted graph whose node `output` sends the same pixels over the WebSocket, and writes no file on the engine's disk.

    None if the engine has no SaveImageWebsocket that takes pictures and nothing else, or if the node does more than save
    them: another node may use what it returns.
    """
    node, sender = nodes[output], live.get(SOCKET_OUTPUT)
    inputs = _SAVING_INPUTS.get(node["class_type"], set())
    is_only_saved = set(node["inputs"]) <= inputs and "images" in node["inputs"]
    is_used = any(output in sources_of(nodes, other) for other in nodes)
    if sender is None or set(sender.inputs) != {"images"} or not is_only_saved or is_used:
        return None
    images = {"images": node["inputs"]["images"]}
    return {**nodes, output: {**node, "class_type": SOCKET_OUTPUT, "inputs": images}}


# --- files ----------------------------------------------------------------------------------------


def missing_files(nodes: Nodes, live: Signatures, signatures: Signatures) -> Iterator[MissingFile]:
    """Every file that the graph uses and the engine does not list."""
    for node_id, node in nodes.items():
        known = signatures[node["class_type"]].inputs_for(node["inputs"])
        for name, (value, match) in _file_matches(node["inputs"], live[node["class_type"]], known).items():
            if match.listed is None:
                yield MissingFile(node_id, name, value, known[name].folder, match)


def _file_matches(
    values: Mapping[str, Any], live: NodeSignature, known: Mapping[str, InputSignature]
) -> dict[str, tuple[str, FileMatch]]:
    """The files of weights that a node uses, by input, as far as the engine lists them."""
    live_inputs = live.inputs_for(values)
    return {
        name: (value, find_file(value, [str(choice) for choice in live_inputs[name].choices or ()]))
        for name, value in values.items()
        if isinstance(value, str)
        and name in known
        and known[name].is_model_file
        and name in live_inputs
        and live_inputs[name].choices is not None
    }


def _files_missing(missing: list[MissingFile], files: Mapping[str, File], engine: EngineName) -> FilesMissing:
    by_name = {file.name: file for file in files.values()}
    entries, texts = [], []
    for file in missing:
        declared = by_name.get(with_slashes(file.name))
        folder = file.folder or (declared.folder if declared else None)
        place = f" in models/{folder}" if folder else f" for the input {file.input} of the node {file.node!r}"
        texts.append(f"{file.name}{place}{_suggestion(file.match)}")
        entries.append(
            {
                "name": file.name,
                "folder": f"models/{folder}" if folder else None,
                "url": declared.url if declared else None,
                "node": file.node,
                "input": file.input,
                "ambiguous": list(file.match.ambiguous),
                "nearest": list(file.match.nearest),
            }
        )
    name = "ComfyUI" if engine is COMFYUI else engine.name
    return FilesMissing(f"{name} does not have {'; '.join(texts)}.{engine.files_hint}", files=entries)


def _suggestion(match: FileMatch) -> str:
    if match.ambiguous:
        return f" (it could be any of {', '.join(match.ambiguous)}: write one of these in the catalogue)"
    return f" (similar: {', '.join(match.nearest)})" if match.nearest else ""


# --- inputs ---------------------------------------------------------------------------------------


def _fitted(
    node_id: str, node: Mapping[str, Any], live: NodeSignature, known: NodeSignature, engine: EngineName
) -> dict[str, Any]:
    inputs = dict(node["inputs"])
    known_inputs, live_inputs = known.inputs_for(inputs), live.inputs_for(inputs)
    inputs |= {name: match.listed for name, (_, match) in _file_matches(inputs, live, known_inputs).items()}
    for name, value in node["inputs"].items():
        if name in live_inputs and name in known_inputs:
            _check_value(
                node_id, node["class_type"], name, value, live_inputs[name], known_inputs[name], engine
            )
    for name, value in node["inputs"].items():
        if name in known_inputs and name not in live_inputs:
            _check_is_default(node_id, node["class_type"], name, value, known_inputs[name], engine)
            del inputs[name]
    return _with_defaults(node_id, node["class_type"], inputs, live, engine)


def _with_defaults(
    node_id: str, class_type: str, inputs: dict[str, Any], live: NodeSignature, engine: EngineName
) -> dict[str, Any]:
    """`inputs` completed by the engine's defaults."""
    for _ in range(MAX_DEFAULT_ROUNDS):
        missing = {
            name: _default(node_id, class_type, name, live_input, engine)
            for name, live_input in live.inputs_for(inputs).items()
            if live_input.required and name not in inputs
        }
        if not missing:
            break
        inputs = {**inputs, **missing}
    return inputs


def _check_is_default(
    node_id: str, class_type: str, name: str, value: Any, known: InputSignature, engine: EngineName
) -> None:
    if not known.has_default or value != known.default:
        raise NodesMissing(
            f"{engine.name}'s {class_type} has no input {name!r}, which node {node_id!r} sets to {value!r}."
            f"{engine.nodes_hint}",
            node=node_id, class_type=class_type, input=name,
        )  # fmt: skip


def _default(node_id: str, class_type: str, name: str, live: InputSignature, engine: EngineName) -> Any:
    if live.has_default:
        return live.default
    if live.choices:
        return live.choices[0]  # as ComfyUI's own page does for a list without a default
    raise NodesMissing(
        f"{engine.name}'s {class_type} requires an input {name!r} that node {node_id!r} does not set."
        f"{engine.nodes_hint}",
        node=node_id, class_type=class_type, input=name,
    )  # fmt: skip


def _check_value(
    node_id: str,
    class_type: str,
    name: str,
    value: Any,
    live: InputSignature,
    known: InputSignature,
    engine: EngineName,
) -> None:
    """Raises NodesMissing if this engine does not offer the choice, or has a narrower range than the known versions."""
    if isinstance(value, list) or known.is_file:
        return
    value = plain_value(value)
    given = value if live.several and isinstance(value, list) else [value]
    # Otherwise the engine checks the value by other means than its list.
    has_choices = live.choices is not None and known.choices is not None and not known.any_value
    if has_choices and not set(given) <= set(live.choices or ()):
        raise NodesMissing(
            f"{engine.name}'s {class_type} does not offer {name} {value!r}, which node {node_id!r} uses."
            f"{engine.nodes_hint}",
            node=node_id, class_type=class_type, input=name, given=value, allowed=list(live.choices or ()),
        )  # fmt: skip
    if is_out_of_range(value, live):
        raise NodesMissing(
            f"{engine.name}'s {class_type} allows {name} from {live.minimum} to {live.maximum}; node {node_id!r} sets "
            f"it to {value!r}."
            f"{engine.nodes_hint}",
            node=node_id, class_type=class_type, input=name, given=value, allowed=[live.minimum, live.maximum],
        )  # fmt: skip
