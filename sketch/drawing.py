"""Draws pencil sketches: the same spec gives the same pixels, and every sketch is labelled as one. Knows Pillow and
seeded random numbers; never what a graph or a server is."""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
Colour = tuple[int, int, int]
Size = tuple[int, int]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom; right and bottom are exclusive, as in Pillow"""

LABEL = "SKETCH · no model ran"
SHORT_LABEL = "SKETCH"
GRAPHITE: Colour = (62, 60, 66)
FAINT: Colour = (150, 146, 146)
NOTE_COLOUR: Colour = (255, 253, 246)
LABEL_COLOUR: Colour = (150, 52, 44)
PAPERS: list[Colour] = [(250, 246, 236), (247, 243, 230), (244, 246, 240), (250, 242, 234), (243, 244, 247)]
PALETTES: list[list[Colour]] = [
    [(231, 169, 79), (108, 158, 178), (126, 161, 108), (196, 98, 83)],
    [(240, 190, 104), (142, 156, 199), (92, 139, 118), (178, 96, 122)],
    [(222, 128, 92), (96, 146, 152), (156, 166, 92), (108, 92, 138)],
    [(238, 172, 150), (122, 170, 196), (112, 150, 134), (204, 122, 62)],
    [(214, 180, 72), (118, 132, 172), (146, 152, 116), (166, 74, 74)],
]


@dataclass(frozen=True)
class SketchSpec:
    """What to draw. Sizes in pixels; `lines`: the lines of the caption after the label, most important first."""

    width: int
    height: int
    seed: int
    prompt: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """One pencil line, in units of the picture's shorter side, `width` too. Width 0: fill the shape with paper colour."""

    points: list[Point]
    colour: Colour
    width: float


class Sketch:
    """A drawing that can be rendered after any number of lines and in any size with the same aspect ratio."""

    def __init__(self, spec: SketchSpec) -> None:
        self.spec = spec
        self._short_side = min(spec.width, spec.height)
        pencil = Pencil(spec)
        pencil.scene()
        self.paper, self.lines = pencil.paper, pencil.lines

    def finished(self) -> Image.Image:
        """The complete drawing without a caption; RGB, in the size of the spec."""
        scale = 2 if self._short_side <= 1536 else 1
        canvas = Image.new("RGB", (self.spec.width * scale, self.spec.height * scale), self.paper)
        self._draw(canvas, self.lines)
        return canvas.reduce(scale) if scale > 1 else canvas

    def frames(self, steps: int, max_side: int) -> Iterator[Image.Image]:
        """The drawing after each of `steps`, no side longer than `max_side` pixels. Yields one canvas: copy to keep."""
        shrink = min(1.0, max_side / max(self.spec.width, self.spec.height))
        size = (max(1, round(self.spec.width * shrink)), max(1, round(self.spec.height * shrink)))
        canvas, start = Image.new("RGB", size, self.paper), 0
        for step in range(1, steps + 1):
            end = len(self.lines) * step // steps
            self._draw(canvas, self.lines[start:end])
            start = end
            yield canvas

    def _draw(self, canvas: Image.Image, lines: list[Line]) -> None:
        unit, draw = min(canvas.size), ImageDraw.Draw(canvas)
        for line in lines:
            points = [(x * unit, y * unit) for x, y in line.points]
            if line.width:
                draw.line(points, fill=line.colour, width=max(1, round(line.width * unit)))
            else:
                draw.polygon(points, fill=line.colour)


class Pencil:
    """Draws one spec with wobbly lines and hatching. `width` and `height` are in units of the shorter side; `pixel` is
    the size of a pixel in these units."""

    def __init__(self, spec: SketchSpec) -> None:
        self.random = random.Random(spec.seed)
        short_side = min(spec.width, spec.height)
        self.width, self.height = spec.width / short_side, spec.height / short_side
        self.pixel = 1 / short_side
        self.prompt = spec.prompt.lower()
        self.paper = self.random.choice(PAPERS)
        self.colours = list(self.random.choice(PALETTES))
        self.lines: list[Line] = []

    # --- lines ---

    def line(self, points: list[Point], colour: Colour = GRAPHITE, width: float = 0.003) -> None:
        """One line through the points, each displaced a little."""
        offset = min(0.004, width * 1.2)
        uniform = self.random.uniform
        wobbly = [(x + uniform(-offset, offset), y + uniform(-offset, offset)) for x, y in points]
        self.lines.append(Line(wobbly, colour, width))

    def outline(self, points: list[Point], colour: Colour = GRAPHITE, width: float = 0.003) -> None:
        """A line drawn twice, like a searching hand; once if the pixels are too large to show the second."""
        self.line(points, colour, max(width, self.pixel * 0.7))
        if self.pixel < 0.008:
            self.line(points, colour, width * 0.6)

    def hatch(self, shape: list[Point], colour: Colour, angle: float, gap: float = 0.012) -> None:
        """Fill a closed shape with parallel strokes, `gap` apart or further if the pixels are large."""
        gap = max(gap, self.pixel * 2.2)
        sine, cosine = math.sin(angle), math.cos(angle)
        rotated = [(x * cosine + y * sine, y * cosine - x * sine) for x, y in shape]
        edges = list(zip(rotated, rotated[1:] + rotated[:1], strict=True))
        level, bottom = min(y for _, y in rotated) + gap / 2, max(y for _, y in rotated)
        while level < bottom:
            crossings = sorted(
                ax + (level - ay) * (bx - ax) / (by - ay)
                for (ax, ay), (bx, by) in edges
                if (ay <= level) != (by <= level)
            )
            for left, right in zip(crossings[::2], crossings[1::2], strict=False):
                self._stroke(left, right, level, sine, cosine, colour, gap)
            level += gap * self.random.uniform(0.8, 1.2)

    def _stroke(
        self, left: float, right: float, level: float, sine: float, cosine: float, colour: Colour, gap: float
    ) -> None:
        slack = self.random.uniform(-0.3, 0.3) * gap
        ends = [
            (left + slack, level),
            ((left + right) / 2, level + slack / 2),
            (right - slack, level - slack / 2),
        ]
        rotated_back = [(x * cosine - y * sine, x * sine + y * cosine) for x, y in ends]
        self.line(rotated_back, self._tint(colour), gap * self.random.uniform(0.34, 0.5))

    def _tint(self, colour: Colour) -> Colour:
        """Coloured pencil: the colour mixed with the paper's, by a random amount."""
        pressure = self.random.choice((0.5, 0.62, 0.74))
        r, g, b = (
            round(ink * pressure + sheet * (1 - pressure))
            for ink, sheet in zip(colour, self.paper, strict=True)
        )
        return (r, g, b)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, start: float = 0, turn: float = 1
    ) -> list[Point]:
        """Points of an ellipse or arc; `start` and `turn` (its length) are fractions of the full circle."""
        count = max(8, min(40, int(max(rx, ry) / self.pixel / 1.5)))
        angles = [2 * math.pi * (start + turn * i / count) for i in range(count + 1)]
        return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]

    # --- the scene ---

    def scene(self) -> None:
        """Draw sky, land, one motif and the frame."""
        horizon = self.height * self.random.uniform(0.42, 0.5)
        self.sky(horizon)
        ground = self.hills(horizon)
        motif = next((MOTIFS[name] for name in MOTIFS if name in self.prompt), None)
        draw = motif or self.random.choice(list(MOTIFS.values()))
        x = self.width * self.random.uniform(0.3, 0.7)
        draw(self, x, ground + self.random.uniform(0.02, 0.06), self.random.uniform(0.3, 0.38))
        self.meadow(ground)
        self.frame()

    def sky(self, horizon: float) -> None:
        sun, blue = self.colours[0], self.colours[1]
        x = self.width * self.random.choice(
            (self.random.uniform(0.15, 0.35), self.random.uniform(0.65, 0.85))
        )
        y, radius = horizon * self.random.uniform(0.25, 0.5), self.random.uniform(0.06, 0.11)
        for _ in range(self.random.randint(2, 4)):
            self.cloud(self.width * self.random.random(), horizon * self.random.uniform(0.1, 0.7), blue)
        disc = self.ellipse(x, y, radius, radius, self.random.random())
        self.hatch(disc, sun, self.random.uniform(0.4, 1.2), 0.009)
        self.outline(disc)
        self.rays(x, y, radius, sun)
        for _ in range(self.random.randint(2, 6)):
            self.bird(self.width * self.random.uniform(0.1, 0.9), horizon * self.random.uniform(0.15, 0.75))

    def cloud(self, x: float, y: float, colour: Colour) -> None:
        size = self.random.uniform(0.05, 0.09)
        bumps = [
            self.ellipse(x + i * size, y, size * 0.7, size * (0.9 - 0.35 * abs(i)), 0.5, 0.5)
            for i in (-1, 0, 1)
        ]
        edge = [point for bump in bumps for point in bump]
        self.hatch(edge, colour, -0.5, 0.011)
        self.outline([*edge, edge[0]], FAINT, 0.0022)

    def rays(self, x: float, y: float, radius: float, colour: Colour) -> None:
        count = self.random.randint(9, 15)
        for i in range(count):
            angle = 2 * math.pi * i / count + self.random.uniform(-0.1, 0.1)
            near, far = radius * 1.25, radius * self.random.uniform(1.45, 1.8)
            dx, dy = math.cos(angle), math.sin(angle)
            self.line([(x + near * dx, y + near * dy), (x + far * dx, y + far * dy)], colour, 0.004)

    def bird(self, x: float, y: float) -> None:
        wing = self.random.uniform(0.012, 0.026)
        self.outline([(x - wing, y - wing / 2), (x - wing / 2, y - wing * 0.7), (x, y)], width=0.0024)
        self.outline([(x, y), (x + wing / 2, y - wing * 0.7), (x + wing, y - wing / 3)], width=0.0024)

    def hills(self, horizon: float) -> float:
        """Draw two or three ridges, the nearest last. Returns the mean height (y) of the nearest."""
        rise, middle, count = self.random.uniform(0.04, 0.09), horizon, self.random.randint(2, 3)
        for i in range(count):
            middle = horizon + i * 0.09
            ridge = self.ridge(middle, rise / (1 + i))
            bottom = self.height if i == count - 1 else middle + 0.13
            land = [*ridge, (self.width, bottom), (0.0, bottom)]
            self.hatch(
                land, self.colours[(1, 2, 2)[i]], (0.5, -0.35, 0.2)[i] + self.random.uniform(-0.2, 0.2), 0.015
            )
            self.outline(ridge)
        return middle

    def ridge(self, middle: float, rise: float) -> list[Point]:
        waves = [(rise / n, self.random.uniform(1.5, 3.5) * n, self.random.uniform(0, 7)) for n in (1, 2, 4)]
        count = max(6, min(48, int(self.width / self.pixel / 8)))
        along = [self.width * i / count for i in range(count + 1)]
        return [(x, middle + sum(a * math.sin(f * x + p) for a, f, p in waves)) for x in along]

    def meadow(self, ground: float) -> None:
        green, accent = self.colours[2], self.colours[3]
        area = self.width * max(0.0, self.height - ground)
        for _ in range(int(min(90 * area, area / (self.pixel * 9) ** 2))):
            x, y = self.width * self.random.random(), self.random.uniform(ground + 0.05, self.height)
            tall = self.random.uniform(0.015, 0.03)
            for lean in (-0.4, 0.0, 0.5):
                self.line(
                    [(x, y), (x + lean * tall / 2, y - tall * 0.6), (x + lean * tall, y - tall)],
                    green,
                    0.0026,
                )
            if self.random.random() < 0.2:
                self.line(self.ellipse(x, y - tall, 0.005, 0.005), accent, 0.005)

    def frame(self) -> None:
        inset = 0.022
        corners = [(inset, inset), (self.width - inset, inset), (self.width - inset, self.height - inset)]
        corners += [(inset, self.height - inset), (inset, inset)]
        for start, end in pairwise(corners):
            self.outline([start, end], FAINT, 0.002)

    def filled(self, shape: list[Point], colour: Colour, angle: float, gap: float = 0.01) -> None:
        """Draw a closed shape, hatched and outlined, that hides what is behind it."""
        self.lines.append(Line(shape, self.paper, 0))
        self.hatch(shape, colour, angle, gap)
        self.outline([*shape, shape[0]], width=0.0036)


# --- motifs: centred at x, standing on y, `size` high ---


def house(pencil: Pencil, x: float, y: float, size: float) -> None:
    half, eaves = size * 0.5, y - size * 0.55
    walls = [(x - half, y), (x - half, eaves), (x + half, eaves), (x + half, y)]
    roof = [
        (x - half * 1.2, eaves),
        (x - half * 0.7, y - size),
        (x + half * 0.7, y - size),
        (x + half * 1.2, eaves),
    ]
    chimney = [(x + half * 0.3, y - size * 0.9), (x + half * 0.3, y - size * 1.15)]
    chimney += [(x + half * 0.5, y - size * 1.15), (x + half * 0.5, y - size * 0.9)]
    pencil.filled(chimney, pencil.colours[3], 0.2)
    pencil.filled(walls, pencil.colours[0], 1.2, 0.018)
    pencil.filled(roof, pencil.colours[3], -0.7)
    door = [(x - size * 0.08, y), (x - size * 0.08, y - size * 0.3), (x + size * 0.08, y - size * 0.3)]
    pencil.filled([*door, (x + size * 0.08, y)], pencil.colours[2], 1.5, 0.008)
    for side in (-1, 1):
        left, top, edge = x + side * half * 0.6 - size * 0.07, y - size * 0.42, size * 0.14
        pane = [(left, top), (left + edge, top), (left + edge, top + edge), (left, top + edge)]
        pencil.filled(pane, pencil.colours[1], 0.8, 0.012)
        pencil.line([(left + edge / 2, top), (left + edge / 2, top + edge)])
        pencil.line([(left, top + edge / 2), (left + edge, top + edge / 2)])
    for i in range(3):
        puff = size * (0.05 + 0.02 * i)
        drift = pencil.ellipse(
            x + half * (0.45 + 0.2 * i), y - size * (1.22 + 0.13 * i), puff * 1.3, puff, 0.1 * i, 0.85
        )
        pencil.outline(drift, FAINT)


def tree(pencil: Pencil, x: float, y: float, size: float) -> None:
    for dx, part in ((-0.55, 0.75), (0.5, 0.6), (0.0, 1.1)):
        root, tall = x + dx * size, size * part
        trunk = [(root - tall * 0.05, y), (root - tall * 0.03, y - tall * 0.5)]
        trunk += [(root + tall * 0.03, y - tall * 0.5), (root + tall * 0.06, y)]
        pencil.filled(trunk, pencil.colours[3], 1.5, 0.008)
        for bx, by, br in ((-0.17, 0.58, 0.18), (0.17, 0.6, 0.17), (0.0, 0.8, 0.24)):
            crown = pencil.ellipse(
                root + bx * tall, y - by * tall, br * tall, br * tall, pencil.random.random()
            )
            pencil.filled(crown[:-1], pencil.colours[2], 0.9 + bx, 0.011)


def boat(pencil: Pencil, x: float, y: float, size: float) -> None:
    mast = x - size * 0.05
    hull = [
        (x - size * 0.5, y - size * 0.18),
        (x + size * 0.55, y - size * 0.18),
        (x + size * 0.35, y),
        (x - size * 0.35, y),
    ]
    sail = [
        (mast + size * 0.03, y - size),
        (mast + size * 0.5, y - size * 0.26),
        (mast + size * 0.03, y - size * 0.26),
    ]
    jib = [
        (mast - size * 0.03, y - size * 0.9),
        (mast - size * 0.36, y - size * 0.26),
        (mast - size * 0.03, y - size * 0.26),
    ]
    pencil.filled(sail, pencil.colours[0], 1.2, 0.014)
    pencil.filled(jib, pencil.colours[1], 1.9, 0.014)
    pencil.filled(hull, pencil.colours[3], 0.05)
    pencil.outline([(mast, y - size * 0.18), (mast, y - size * 1.06)], width=0.005)
    for i in range(7):
        left = x + pencil.random.uniform(-0.9, 0.5) * size
        level = y + (0.02 + 0.035 * i) * size
        wave = [
            (left, level),
            (left + 0.12 * size, level - 0.02 * size),
            (left + 0.25 * size, level),
            (left + 0.4 * size, level),
        ]
        pencil.outline(wave, pencil.colours[1], 0.003)


def balloon(pencil: Pencil, x: float, y: float, size: float) -> None:
    y -= size * 0.35
    centre, radius = y - size * 0.65, size * 0.42
    for i, (half, colour) in enumerate(((1.0, 0), (0.62, 3), (0.22, 1))):
        gore = pencil.ellipse(x, centre, radius * half, radius, 0.3 * i)
        pencil.filled(gore[:-1], pencil.colours[colour], 1.5 - 0.3 * i, 0.011)
    basket = [
        (x - size * 0.09, y - size * 0.06),
        (x + size * 0.09, y - size * 0.06),
        (x + size * 0.07, y + size * 0.08),
    ]
    pencil.filled([*basket, (x - size * 0.07, y + size * 0.08)], pencil.colours[2], 0.1, 0.009)
    for side in (-1, 1):
        pencil.outline(
            [(x + side * size * 0.25, centre + radius * 0.8), (x + side * size * 0.085, y - size * 0.06)]
        )


def flower(pencil: Pencil, x: float, y: float, size: float) -> None:
    for dx, part, colour in ((-0.4, 0.7, 0), (0.42, 0.8, 1), (0.0, 1.1, 3)):
        head, root, petal = (x + dx * size, y - size * part), x + dx * size * 0.5, size * 0.13
        stem = [(root, y), (root + dx * size * 0.1, y - size * part * 0.5), head]
        pencil.outline(stem, pencil.colours[2], 0.006)
        leaf = pencil.ellipse(root + size * 0.08, y - size * part * 0.3, size * 0.1, size * 0.035, 0.5)
        pencil.filled(leaf[:-1], pencil.colours[2], 0.3, 0.008)
        for i in range(7):
            angle = 2 * math.pi * i / 7
            centre = (head[0] + petal * math.cos(angle), head[1] + petal * math.sin(angle))
            pencil.filled(
                pencil.ellipse(*centre, petal * 0.62, petal * 0.62)[:-1], pencil.colours[colour], angle, 0.009
            )
        pencil.filled(pencil.ellipse(*head, petal * 0.6, petal * 0.6)[:-1], pencil.colours[0], 0.8, 0.007)


def cat(pencil: Pencil, x: float, y: float, size: float) -> None:
    fur, head = pencil.colours[0], (x, y - size * 0.78)
    tail = pencil.ellipse(x + size * 0.34, y - size * 0.28, size * 0.2, size * 0.24, 0.22, -0.55)
    pencil.outline(tail, fur, 0.018)
    pencil.filled(pencil.ellipse(x, y - size * 0.3, size * 0.3, size * 0.32)[:-1], fur, 1.2)
    for side in (-1, 1):
        ear = [
            (head[0] + side * size * 0.21, head[1] - size * 0.06),
            (head[0] + side * size * 0.2, head[1] - size * 0.32),
        ]
        pencil.filled([*ear, (head[0] + side * size * 0.04, head[1] - size * 0.17)], pencil.colours[3], 0.6)
    pencil.filled(pencil.ellipse(*head, size * 0.24, size * 0.2)[:-1], fur, 0.5)
    for side in (-1, 1):
        pencil.line(
            pencil.ellipse(head[0] + side * size * 0.09, head[1] - size * 0.02, size * 0.02, size * 0.03),
            width=0.007,
        )
        for lift in (-0.03, 0.02):
            start = (head[0] + side * size * 0.1, head[1] + size * 0.08)
            pencil.line([start, (head[0] + side * size * 0.34, head[1] + size * (0.06 + lift))])
        pencil.filled(
            pencil.ellipse(x + side * size * 0.12, y - size * 0.03, size * 0.1, size * 0.05)[:-1], fur, 0.1
        )
    nose = [(head[0] - size * 0.02, head[1] + size * 0.05), (head[0] + size * 0.02, head[1] + size * 0.05)]
    pencil.outline([*nose, (head[0], head[1] + size * 0.08), nose[0]], pencil.colours[3], 0.006)


MOTIFS: dict[str, Callable[[Pencil, float, float, float], None]] = {
    "house": house,
    "tree": tree,
    "boat": boat,
    "balloon": balloon,
    "flower": flower,
    "cat": cat,
}


# --- the caption ---


def draw_caption(image: Image.Image, lines: tuple[str, ...], box: Box | None = None) -> Box:
    """Draw the label and as much of `lines` as fits at the bottom of `box`, in place. Returns the box that it covers."""
    left, top, right, bottom = box or (0, 0, *image.size)
    short_side = min(right - left, bottom - top)
    size, margin = short_side // 48 + 7, max(1, short_side // 40)
    max_width = right - left - 4 * margin
    lines = tuple(_printable(line) for line in lines)
    font = _font(size)
    if font.getlength(LABEL) <= max_width:
        rows = _rows(lines, size, max_width, short_side // (5 * size))
    else:
        rows = [SHORT_LABEL] if font.getlength(SHORT_LABEL) <= max_width else []
    if rows:
        return _draw_note(image, rows, size, margin, (left, bottom))
    return _draw_corner(image, (left, top, right, bottom))


def _rows(lines: tuple[str, ...], size: int, max_width: int, max_rows: int) -> list[str]:
    """The label, then the lines; the first line may take two rows if there is space."""
    spare_rows = max_rows - 1 - len(lines)
    rows = [_shorten(LABEL, size, max_width)]
    for i, line in enumerate(lines):
        row = _shorten(line, size, max_width)
        if i == 0 and spare_rows > 0 and row.endswith("…"):
            row = row[: row.rfind(" ")] if " " in row else row[:-1]
            rows.append(row)
            row = _shorten(line[len(row) :].strip(), size, max_width)
        rows.append(row)
    return [row for row in rows[: max(1, max_rows)] if row]


def _draw_note(
    image: Image.Image, rows: list[str], size: int, margin: int, bottom_left: tuple[int, int]
) -> Box:
    row_height, (left, bottom) = size * 5 // 4, bottom_left
    draw, font = ImageDraw.Draw(image), _font(size)
    width = math.ceil(max(font.getlength(row) for row in rows)) + 2 * margin
    top = bottom - margin - row_height * len(rows) - margin
    note = (left + margin, top, left + margin + width + 1, bottom - margin)
    draw.rectangle((*note[:2], note[2] - 1, note[3] - 1), fill=NOTE_COLOUR, outline=FAINT)
    for i, row in enumerate(rows):
        draw.text(
            (left + 2 * margin, top + margin // 2 + i * row_height),
            row,
            fill=GRAPHITE if i else LABEL_COLOUR,
            font=font,
        )
    return note


def _draw_corner(image: Image.Image, box: Box) -> Box:
    """Mark a picture that is too small for a word with a red corner."""
    left, top, right, bottom = box
    side = max(1, min(right - left, bottom - top) // 4)
    ImageDraw.Draw(image).polygon(
        [(left, bottom - 1), (left + side, bottom - 1), (left, bottom - 1 - side)], LABEL_COLOUR
    )
    return left, bottom - 1 - side, left + side + 1, bottom


def _printable(text: str) -> str:
    """`text` on one line, in the characters of the font: accents are removed, other scripts become an ellipsis."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text[:1000]) if not unicodedata.combining(c))
    return re.sub(r"[^ -~“”’…·]+", "…", " ".join(plain.split()))


def _shorten(text: str, size: int, max_width: float) -> str:
    """`text` on one row, cut with an ellipsis if it is too wide; '' if nothing would be left."""
    font = _font(size)
    if len(text) < 300 and font.getlength(text) <= max_width:
        return text
    keep = min(len(text), 300)
    while keep and font.getlength(text[:keep] + "…") > max_width:
        keep = min(keep - 1, int(keep * max_width / font.getlength(text[:keep] + "…")))
    return text[:keep].rstrip() + "…" if keep > 2 else ""


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
