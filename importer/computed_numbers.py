"""The value of a number that nodes of a graph compute from constants, such as a width from an aspect ratio."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from importer.graph_view import GraphView, Output, Place

_RATIO = "ResolutionSelector"
_EXPRESSION = "ComfyMathExpression"
_CONVERSIONS = ("ComfyNumberConvert", "IntToFloat", "FloatToInt")
_MAX_DEPTH = 50
_MAX_EXPONENT = 64

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: lambda left, right: int(left) & int(right),
    ast.BitOr: lambda left, right: int(left) | int(right),
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "round": round,
    "int": int,
    "float": float,
    "floor": math.floor,
    "ceil": math.ceil,
    "sqrt": math.sqrt,
}


class NotConstant(Exception):
    """The value depends on more than constants, or on a node that is not known here."""


def number_at(graph: GraphView, place: Place, depth: int = 0) -> float:
    """The number that `place` gets. Raises NotConstant."""
    traced = graph.traced(place)
    if traced is not None:
        return _number(graph.value(traced))
    producer = graph.producer(place)
    if producer is None or depth > _MAX_DEPTH:
        raise NotConstant
    return _output(graph, producer, depth + 1)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotConstant
    return value


def _output(graph: GraphView, output: Output, depth: int) -> float:
    node, slot = output
    node_class = graph.node_class(node)
    if node_class == _RATIO:
        return _resolution(graph, node)[slot]
    if node_class == _EXPRESSION:
        return _evaluate(graph, node, slot, depth)
    if node_class in _CONVERSIONS or (
        len(graph.signature(node).inputs) == 1 and graph.output_types(node) in (("INT",), ("FLOAT",))
    ):
        names = list(graph.signature(node).inputs)
        value = number_at(graph, (node, names[0]), depth)
        return int(value) if graph.output_types(node)[slot] == "INT" else float(value)
    raise NotConstant


def _resolution(graph: GraphView, node: str) -> tuple[int, int]:
    ratio, megapixels, multiple = (
        graph.value((node, name)) for name in ("aspect_ratio", "megapixels", "multiple")
    )
    try:
        across, down = (int(side) for side in str(ratio).split(" ")[0].split(":"))
        scale = math.sqrt(float(megapixels) * 1024 * 1024 / (across * down))
        step = int(multiple or 8)
        return round(across * scale / step) * step, round(down * scale / step) * step
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise NotConstant from error


def _evaluate(graph: GraphView, node: str, slot: int, depth: int) -> float:
    names = {
        name.partition(".")[2]: number_at(graph, (node, name), depth)
        for name in graph.nodes[node]["inputs"]
        if name.startswith("values.")
    }
    try:
        tree = ast.parse(str(graph.value((node, "expression"))), mode="eval")
        value = _expression(tree.body, names)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise NotConstant from error
    return int(value) if graph.output_types(node)[slot] == "INT" else value


def _expression(part: ast.expr, names: Mapping[str, float]) -> Any:
    match part:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_expression(operand, names)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _BINARY:
            return _BINARY[type(operation)](_expression(left, names), _expression(right, names))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            exponent = _expression(right, names)
            if abs(exponent) > _MAX_EXPONENT:
                raise NotConstant
            return _expression(left, names) ** exponent
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_expression(each, names) for each in arguments))
        case _:
            raise NotConstant
