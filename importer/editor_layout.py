"""Where the nodes of a graph are drawn in ComfyUI's editor: in columns from the loaders to the output, without overlaps.

Positions and sizes are in the editor's pixels. A node's position is the corner below its title.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

_TITLE = 30
_ROW = 20
"""height of a socket"""
_WIDGET = 28
_TEXT_LINE = 16
_DRAWN_WIDGET = 130
_RESULT = 260
"""height of a picture or text that a node shows"""
_CHARACTER = 7.5
_MARGIN = 24
_MIN_WIDTH, _MAX_WIDTH = 240, 480
_TEXT_WIDTH = 420
_MIN_TEXT_LINES, _MAX_TEXT_LINES = 5, 16
_COLUMN_GAP, _ROW_GAP = 90, 70
_SWEEPS = 4
_MAX_COLUMN_HEIGHT = 3000

Position = tuple[float, float]
Size = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """What decides how large a node is drawn."""

    title: str
    sockets: Sequence[str]
    """the names of the inputs without a widget"""
    outputs: Sequence[str]
    rows: Sequence[str]
    """name and value of each widget of one line, as a text"""
    texts: Sequence[str] = ()
    """the values of widgets of several lines"""
    spare_sockets: int = 0
    """those that the editor adds for further links"""
    drawn_widgets: int = 0
    """widgets that are neither a line nor a text, such as a rectangle in a picture"""
    shows_result: bool = False
    """a picture or a text under the widgets"""

    @property
    def size(self) -> Size:
        """Width and height without the title."""
        return self._width, self._height

    @property
    def _width(self) -> float:
        sides = max(map(len, self.sockets), default=0) + max(map(len, self.outputs), default=0) + 6
        characters = max(len(self.title) + 8, sides, *(len(row) + 8 for row in self.rows), 0)
        least = _TEXT_WIDTH if self.texts else _MIN_WIDTH
        return min(max(least, round(characters * _CHARACTER)), _MAX_WIDTH)

    @property
    def _height(self) -> float:
        sockets = max(len(self.sockets) + self.spare_sockets, len(self.outputs))
        rows = sockets * _ROW + len(self.rows) * _WIDGET + self.drawn_widgets * _DRAWN_WIDGET
        texts = sum(self._lines(text) * _TEXT_LINE + _MARGIN for text in self.texts)
        return rows + texts + (_RESULT if self.shows_result else 0) + _MARGIN

    def _lines(self, text: str) -> int:
        per_line = int(self._width / _CHARACTER)
        lines = sum(len(line) // per_line + 1 for line in text.splitlines())
        return min(max(lines, _MIN_TEXT_LINES), _MAX_TEXT_LINES)


def positions(sizes: Mapping[str, Size], sources: Mapping[str, Iterable[str]]) -> dict[str, Position]:
    """The position of each node. `sources`: the nodes that each one is linked to; without cycles."""
    columns = [
        part
        for column in _columns(sizes, {node: list(sources.get(node, ())) for node in sizes})
        for part in _divided(column, sizes)
    ]
    placed: dict[str, Position] = {}
    left = 0.0
    for column in columns:
        top = 0.0
        for node in column:
            placed[node] = (left, top)
            top += sizes[node][1] + _TITLE + _ROW_GAP
        left += max(sizes[node][0] for node in column) + _COLUMN_GAP
    return placed


def _divided(column: Sequence[str], sizes: Mapping[str, Size]) -> list[list[str]]:
    """A column as several of about equal height, if it is much taller than a screen, such as one of many loaders. As many
    as make its nodes together about as wide as tall."""
    heights = [sizes[node][1] + _TITLE + _ROW_GAP for node in column]
    width = max(sizes[node][0] for node in column) + _COLUMN_GAP
    total = sum(heights)
    number = math.ceil(total / max(_MAX_COLUMN_HEIGHT, math.sqrt(total * width)))
    parts: list[list[str]] = [[] for _ in range(number)]
    above = 0.0
    for node, height in zip(column, heights, strict=True):
        parts[min(int(above / total * number), number - 1)].append(node)
        above += height
    return [part for part in parts if part]


def _columns(nodes: Iterable[str], sources: Mapping[str, list[str]]) -> list[list[str]]:
    """The nodes by the length of the longest way to them from a node without sources, each column in an order with few
    crossing links."""
    place = {node: index for index, node in enumerate(nodes)}
    depth: dict[str, int] = {}
    for node in TopologicalSorter(sources).static_order():
        depth[node] = max((depth[source] + 1 for source in sources[node]), default=0)
    columns: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in place:
        columns[depth[node]].append(node)
    targets: dict[str, list[str]] = {node: [] for node in place}
    for node, its_sources in sources.items():
        for source in its_sources:
            targets[source].append(node)
    for _ in range(_SWEEPS):
        _sort_by_neighbours(columns, sources)
        _sort_by_neighbours(columns[::-1], targets)
    return columns


def _sort_by_neighbours(columns: Sequence[list[str]], neighbours: Mapping[str, list[str]]) -> None:
    """Order each column by the mean place of its nodes' neighbours, one column after another, in place."""
    place = {node: index / len(column) for column in columns for index, node in enumerate(column)}
    for column in columns:
        own = {node: [place[each] for each in neighbours[node]] or [place[node]] for node in column}
        column.sort(key=lambda node: sum(own[node]) / len(own[node]))
        place |= {node: index / len(column) for index, node in enumerate(column)}
