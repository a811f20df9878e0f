"""What ComfyUI says about a graph before it runs it: the same error types, messages and details, without tracebacks.
Converts plain values in place ("64" becomes 64), as ComfyUI does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sketch.signatures import Input, Signatures

NodeError = dict[str, Any]
CONVERT: dict[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
LONG_LIST = 20


@dataclass
class Verdict:
    """`outputs`: the output nodes that may run. `error` only when none may."""

    outputs: list[str]
    node_errors: dict[str, Any] = field(default_factory=dict)
    error: NodeError | None = None


def validate(prompt: Any, targets: Any, signatures: Signatures, has_image: Callable[[Any], bool]) -> Verdict:
    """Judges a graph. A graph that is no object of objects raises as it does in ComfyUI (the caller answers 500)."""
    outputs = []
    for node_id in prompt:
        node = prompt[node_id]
        if "class_type" not in node:
            return _refused(
                "invalid_prompt",
                "Cannot execute because a node is missing the class_type property.",
                f"Node ID '#{node_id}'",
            )
        known = signatures.nodes.get(node["class_type"])
        if known is None:
            return _refused(
                "invalid_prompt",
                f"Cannot execute because node {node['class_type']} does not exist.",
                f"Node ID '#{node_id}'",
            )
        if known.output_node and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return _refused("prompt_no_outputs", "Prompt has no outputs", "")
    return _judge(prompt, outputs, GraphWalk(prompt, signatures, has_image))


def _judge(prompt: Any, outputs: list[str], walk: GraphWalk) -> Verdict:
    good: list[str] = []
    complaints: list[str] = []
    node_errors: dict[str, Any] = {}
    for output in outputs:
        if walk.output_is_good(output):
            good.append(output)
            continue
        complaints += [f"{error['message']}: {error['details']}" for error in walk.errors[output]]
        for node_id, errors in walk.errors.items():
            if errors:
                fresh = {
                    "errors": errors,
                    "dependent_outputs": [],
                    "class_type": prompt[node_id]["class_type"],
                }
                node_errors.setdefault(node_id, fresh)["dependent_outputs"].append(output)
    if good:
        return Verdict(good, node_errors) if _can_run(prompt) else _no_inputs(prompt)
    failed = node_error(
        "prompt_outputs_failed_validation", "Prompt outputs failed validation", "\n".join(complaints), {}
    )
    return Verdict([], node_errors, failed)


def _can_run(prompt: Any) -> bool:
    return all(isinstance(node.get("inputs"), dict) for node in prompt.values())


def _no_inputs(prompt: Any) -> Verdict:
    """ComfyUI accepts such a node when nothing is linked to it, and its worker dies of it; here it is refused."""
    node_id = next(key for key, node in prompt.items() if not isinstance(node.get("inputs"), dict))
    return _refused("invalid_prompt", "Cannot execute because a node has no inputs.", f"Node ID '#{node_id}'")


def _refused(kind: str, message: str, details: str) -> Verdict:
    return Verdict([], {}, node_error(kind, message, details, {}))


def node_error(kind: str, message: str, details: str, extra: Mapping[str, Any]) -> NodeError:
    """One error as ComfyUI writes it."""
    return {"type": kind, "message": message, "details": details, "extra_info": dict(extra)}


class GraphWalk:
    """Judges nodes from the outputs backwards, each once. `faults[id]`: what is wrong with that node itself."""

    def __init__(self, prompt: Any, signatures: Signatures, has_image: Callable[[Any], bool]) -> None:
        self._prompt, self._signatures, self._has_image = prompt, signatures, has_image
        self._verdicts: dict[str, bool] = {}
        self.errors: dict[str, list[NodeError]] = {}

    def output_is_good(self, node_id: str) -> bool:
        """Whether this output node and all it needs are in order."""
        try:
            return self._node(node_id)
        except Exception as error:
            extra = {"exception_type": type(error).__name__, "traceback": []}
            found = node_error(
                "exception_during_validation", "Exception when validating node", str(error), extra
            )
            return self._settle(node_id, [found], False)

    def _node(self, node_id: str) -> bool:
        if node_id in self._verdicts:
            return self._verdicts[node_id]
        self._verdicts[node_id] = False  # so that a cycle ends here: it fails without a fault of any node
        inputs = self._prompt[node_id]["inputs"]
        signature = self._signatures.nodes[self._prompt[node_id]["class_type"]]
        found: list[NodeError] = []
        good = True
        for name, expected in signature.inputs.items():
            if name in inputs:
                good &= self._input(name, expected, inputs, found)
            elif not expected.optional:
                found.append(
                    node_error(
                        "required_input_missing", "Required input is missing", name, {"input_name": name}
                    )
                )
        return self._settle(node_id, found, good)

    def _settle(self, node_id: str, found: list[NodeError], good: bool) -> bool:
        self.errors[node_id] = found
        self._verdicts[node_id] = good and not found
        return self._verdicts[node_id]

    def _input(self, name: str, expected: Input, inputs: dict[str, Any], found: list[NodeError]) -> bool:
        """Checks one input; false when what it is linked to is at fault. Its own faults go to `found`."""
        value = inputs[name]
        if isinstance(value, list):
            return self._link(name, expected, value, found)
        if isinstance(value, dict) and "__value__" in value:
            value = inputs[name] = value["__value__"]
        told = self._told(name, expected)
        if expected.type in CONVERT:
            try:
                value = inputs[name] = CONVERT[expected.type](value)
            except Exception as error:
                told |= {"received_value": value, "exception_message": str(error)}
                message = f"Failed to convert an input value to a {expected.type} value"
                found.append(node_error("invalid_input_type", message, f"{name}, {value}, {error}", told))
                return True
        wrong = self._out_of_range(name, expected, value, told) or self._not_in_list(
            name, expected, value, told
        )
        if wrong:
            found.append(wrong)
        return True

    def _link(self, name: str, expected: Input, link: list[Any], found: list[NodeError]) -> bool:
        told = self._told(name, expected)
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            found.append(node_error("bad_linked_input", message, name, told | {"received_value": link}))
            return True
        source, slot = link
        received = self._signatures.nodes[self._prompt[source]["class_type"]].outputs[slot]
        if received != expected.type and "*" not in (received, expected.type):
            wanted = told["input_config"][0]
            details = f"{name}, received_type({received}) mismatch input_type({wanted})"
            told |= {"received_type": received, "linked_node": link}
            found.append(
                node_error("return_type_mismatch", "Return type mismatch between linked nodes", details, told)
            )
            return True
        return self._linked_node(source, link, told)

    def _linked_node(self, source: str, link: list[Any], told: dict[str, Any]) -> bool:
        try:
            return self._node(source)
        except Exception as error:
            told |= {"exception_message": str(error), "exception_type": type(error).__name__}
            told |= {"traceback": [], "linked_node": link}
            message = "Exception when validating inner node"
            return self._settle(
                source, [node_error("exception_during_inner_validation", message, str(error), told)], False
            )

    def _told(self, name: str, expected: Input) -> dict[str, Any]:
        return {"input_name": name, "input_config": self._signatures.config(expected)}

    def _out_of_range(self, name: str, expected: Input, value: Any, told: dict[str, Any]) -> NodeError | None:
        told = told | {"received_value": value}
        least, most = expected.options.get("min"), expected.options.get("max")
        if least is not None and value < least:
            return node_error(
                "value_smaller_than_min", f"Value {value} smaller than min of {least}", name, told
            )
        if most is not None and value > most:
            return node_error("value_bigger_than_max", f"Value {value} bigger than max of {most}", name, told)
        return None

    def _not_in_list(self, name: str, expected: Input, value: Any, told: dict[str, Any]) -> NodeError | None:
        if expected.type != "COMBO":
            return None
        if expected.folder == "input":
            return None if self._has_image(value) else _no_image(name, value)
        choices = self._signatures.choices(expected)
        if value in choices:
            return None
        many = len(choices) > LONG_LIST
        listed = f"(list of length {len(choices)})" if many else str(choices)
        told = told | {"received_value": value, "input_config": None if many else told["input_config"]}
        return node_error(
            "value_not_in_list", "Value not in list", f"{name}: '{value}' not in {listed}", told
        )


def _no_image(name: str, value: Any) -> NodeError:
    details = f"{name} - Invalid image file: {value}"
    return node_error(
        "custom_validation_failed", "Custom validation failed for node", details, {"input_name": name}
    )
