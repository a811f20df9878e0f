"""Checks a graph before it runs, with ComfyUI's error types, messages and details, but without tracebacks.
Converts plain values in place ("64" becomes 64), as ComfyUI does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dynamic_inputs import MATCH_TYPE
from sketch.signatures import Input, Signatures

NodeError = dict[str, Any]
CONVERT: dict[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
LONG_LIST = 20


@dataclass
class ValidationResult:
    """`outputs`: the output nodes that can run. `error` is set only if none can."""

    outputs: list[str]
    node_errors: dict[str, Any] = field(default_factory=dict)
    error: NodeError | None = None


def validate(
    prompt: Any, targets: Any, signatures: Signatures, has_image: Callable[[Any], bool]
) -> ValidationResult:
    """Check a graph. If it is not an object of objects, this raises as it does in ComfyUI (the caller answers 500)."""
    outputs = []
    for node_id in prompt:
        node = prompt[node_id]
        if "class_type" not in node:
            return _refused(
                "invalid_prompt",
                "Cannot execute because a node is missing the class_type property.",
                f"Node ID '#{node_id}'",
            )
        signature = signatures.nodes.get(node["class_type"])
        if signature is None:
            return _refused(
                "invalid_prompt",
                f"Cannot execute because node {node['class_type']} does not exist.",
                f"Node ID '#{node_id}'",
            )
        if signature.output_node and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return _refused("prompt_no_outputs", "Prompt has no outputs", "")
    return _validate_outputs(prompt, outputs, GraphWalk(prompt, signatures, has_image))


def _validate_outputs(prompt: Any, outputs: list[str], walk: GraphWalk) -> ValidationResult:
    valid: list[str] = []
    lines: list[str] = []
    node_errors: dict[str, Any] = {}
    for output in outputs:
        if walk.is_output_valid(output):
            valid.append(output)
            continue
        lines += [f"{error['message']}: {error['details']}" for error in walk.errors[output]]
        for node_id, errors in walk.errors.items():
            if errors:
                entry = {
                    "errors": errors,
                    "dependent_outputs": [],
                    "class_type": prompt[node_id]["class_type"],
                }
                node_errors.setdefault(node_id, entry)["dependent_outputs"].append(output)
    if valid:
        return ValidationResult(valid, node_errors) if _can_run(prompt) else _no_inputs(prompt)
    error = node_error(
        "prompt_outputs_failed_validation", "Prompt outputs failed validation", "\n".join(lines), {}
    )
    return ValidationResult([], node_errors, error)


def _can_run(prompt: Any) -> bool:
    return all(isinstance(node.get("inputs"), dict) for node in prompt.values())


def _no_inputs(prompt: Any) -> ValidationResult:
    """ComfyUI accepts such a node if nothing is linked to it, and its worker thread crashes; here it is refused."""
    node_id = next(key for key, node in prompt.items() if not isinstance(node.get("inputs"), dict))
    return _refused("invalid_prompt", "Cannot execute because a node has no inputs.", f"Node ID '#{node_id}'")


def _refused(kind: str, message: str, details: str) -> ValidationResult:
    return ValidationResult([], {}, node_error(kind, message, details, {}))


def node_error(kind: str, message: str, details: str, extra: Mapping[str, Any]) -> NodeError:
    """One error in ComfyUI's format."""
    return {"type": kind, "message": message, "details": details, "extra_info": dict(extra)}


class GraphWalk:
    """Validates nodes, each once, from the outputs backwards. `errors[id]`: the errors of that node's own inputs."""

    def __init__(self, prompt: Any, signatures: Signatures, has_image: Callable[[Any], bool]) -> None:
        self._prompt, self._signatures, self._has_image = prompt, signatures, has_image
        self._results: dict[str, bool] = {}
        self.errors: dict[str, list[NodeError]] = {}

    def is_output_valid(self, node_id: str) -> bool:
        """Whether this output node and all nodes that it depends on are valid."""
        try:
            return self._validate_node(node_id)
        except Exception as exception:
            extra = {"exception_type": type(exception).__name__, "traceback": []}
            error = node_error(
                "exception_during_validation", "Exception when validating node", str(exception), extra
            )
            return self._set_result(node_id, [error], False)

    def _validate_node(self, node_id: str) -> bool:
        if node_id in self._results:
            return self._results[node_id]
        self._results[node_id] = False  # ends the recursion in a cycle, which is invalid without any error
        inputs = self._prompt[node_id]["inputs"]
        signature = self._signatures.nodes[self._prompt[node_id]["class_type"]]
        errors: list[NodeError] = []
        sources_valid = True
        for name, expected in signature.inputs_for(inputs).items():
            if name in inputs:
                sources_valid &= self._validate_input(name, expected, inputs, errors)
            elif not expected.optional:
                extra = {"input_name": name}
                errors.append(node_error("required_input_missing", "Required input is missing", name, extra))
        return self._set_result(node_id, errors, sources_valid)

    def _set_result(self, node_id: str, errors: list[NodeError], sources_valid: bool) -> bool:
        self.errors[node_id] = errors
        self._results[node_id] = sources_valid and not errors
        return self._results[node_id]

    def _validate_input(
        self, name: str, expected: Input, inputs: dict[str, Any], errors: list[NodeError]
    ) -> bool:
        """Check one input and append its errors to `errors`. False if the node that it is linked to is invalid."""
        value = inputs[name]
        if isinstance(value, list):
            return self._validate_link(name, expected, value, errors)
        if isinstance(value, dict) and "__value__" in value:
            value = inputs[name] = value["__value__"]
        extra = self._extra_info(name, expected)
        if expected.type in CONVERT:
            try:
                value = inputs[name] = CONVERT[expected.type](value)
            except Exception as error:
                extra |= {"received_value": value, "exception_message": str(error)}
                message = f"Failed to convert an input value to a {expected.type} value"
                errors.append(node_error("invalid_input_type", message, f"{name}, {value}, {error}", extra))
                return True
        value_error = self._out_of_range(name, expected, value, extra) or self._not_in_list(
            name, expected, value, extra
        )
        if value_error:
            errors.append(value_error)
        return True

    def _validate_link(self, name: str, expected: Input, link: list[Any], errors: list[NodeError]) -> bool:
        extra = self._extra_info(name, expected)
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            errors.append(node_error("bad_linked_input", message, name, extra | {"received_value": link}))
            return True
        source, slot = link
        received = self._signatures.nodes[self._prompt[source]["class_type"]].outputs[slot]
        if not _accepts(expected.type, received):
            input_type = extra["input_config"][0]
            details = f"{name}, received_type({received}) mismatch input_type({input_type})"
            extra |= {"received_type": received, "linked_node": link}
            message = "Return type mismatch between linked nodes"
            errors.append(node_error("return_type_mismatch", message, details, extra))
            return True
        return self._validate_source(source, link, extra)

    def _validate_source(self, source: str, link: list[Any], extra: dict[str, Any]) -> bool:
        try:
            return self._validate_node(source)
        except Exception as exception:
            extra |= {"exception_message": str(exception), "exception_type": type(exception).__name__}
            extra |= {"traceback": [], "linked_node": link}
            message = "Exception when validating inner node"
            error = node_error("exception_during_inner_validation", message, str(exception), extra)
            return self._set_result(source, [error], False)

    def _extra_info(self, name: str, expected: Input) -> dict[str, Any]:
        return {"input_name": name, "input_config": self._signatures.config(expected)}

    def _out_of_range(
        self, name: str, expected: Input, value: Any, extra: dict[str, Any]
    ) -> NodeError | None:
        extra = extra | {"received_value": value}
        minimum, maximum = expected.settings.get("min"), expected.settings.get("max")
        if minimum is not None and value < minimum:
            message = f"Value {value} smaller than min of {minimum}"
            return node_error("value_smaller_than_min", message, name, extra)
        if maximum is not None and value > maximum:
            message = f"Value {value} bigger than max of {maximum}"
            return node_error("value_bigger_than_max", message, name, extra)
        return None

    def _not_in_list(self, name: str, expected: Input, value: Any, extra: dict[str, Any]) -> NodeError | None:
        if expected.any_value or (expected.type != "COMBO" and expected.options is None):
            return None
        if expected.folder == "input":
            return None if self._has_image(value) else _no_image(name, value)
        choices = self._signatures.choices(expected)
        if value in choices or (isinstance(value, list) and set(value) <= set(choices)):
            return None
        is_long = len(choices) > LONG_LIST
        listed = f"(list of length {len(choices)})" if is_long else str(choices)
        extra = extra | {"received_value": value, "input_config": None if is_long else extra["input_config"]}
        details = f"{name}: '{value}' not in {listed}"
        return node_error("value_not_in_list", "Value not in list", details, extra)


def _accepts(expected: str, received: str) -> bool:
    """Whether a link fits. The types of matched inputs are checked by ComfyUI's own page only."""
    if {expected, received} & {"*", MATCH_TYPE}:
        return True
    return set(received.split(",")) <= set(expected.split(","))


def _no_image(name: str, value: Any) -> NodeError:
    details = f"{name} - Invalid image file: {value}"
    return node_error(
        "custom_validation_failed", "Custom validation failed for node", details, {"input_name": name}
    )
