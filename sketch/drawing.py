"""Draws a pencil sketch from a number: the same brief gives the same pixels, and every sketch says that it is one.
Knows Pillow and chance by seed; never what a graph or a server is."""

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
"""Left, top, right, bottom; the last two are just outside, as in Pillow"""

CLAIM = "SKETCH · no model ran"
GRAPHITE: Colour = (62, 60, 66)
FAINT: Colour = (150, 146, 146)
NOTE: Colour = (255, 253, 246)
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
    """What is to be drawn: sizes in pixels, `lines` of the caption after the claim, most telling first."""

    width: int
    height: int
    seed: int
    prompt: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """One movement of the pencil, in units of the picture's shorter side; `width` too, and 0 rubs the shape out."""

    points: list[Point]
    colour: Colour
    width: float


class Sketch:
    """A drawing that can be shown at any stage and at any size of the same proportions."""

    def __init__(self, brief: SketchSpec) -> None:
        self.brief = brief
        self._short = min(brief.width, brief.height)
        pencil = Pencil(brief)
        pencil.scene()
        self.paper, self.lines = pencil.paper, pencil.lines

    def finished(self) -> Image.Image:
        """The whole drawing without its caption; RGB, of the brief's size."""
        scale = 2 if self._short <= 1536 else 1
        canvas = Image.new("RGB", (self.brief.width * scale, self.brief.height * scale), self.paper)
        self._draw(canvas, self.lines)
        return canvas.reduce(scale) if scale > 1 else canvas

    def growing(self, steps: int, largest: int) -> Iterator[Image.Image]:
        """The drawing after each of `steps`, no side longer than `largest` pixels. One canvas: copy to keep."""
        shrink = min(1.0, largest / max(self.brief.width, self.brief.height))
        size = (max(1, round(self.brief.width * shrink)), max(1, round(self.brief.height * shrink)))
        canvas, done = Image.new("RGB", size, self.paper), 0
        for step in range(1, steps + 1):
            upto = len(self.lines) * step // steps
            self._draw(canvas, self.lines[done:upto])
            done = upto
            yield canvas

    def _draw(self, canvas: Image.Image, lines: list[Line]) -> None:
        unit, draw = min(canvas.size), ImageDraw.Draw(canvas)
        for line in lines:
            places = [(x * unit, y * unit) for x, y in line.points]
            if line.width:
                draw.line(places, fill=line.colour, width=max(1, round(line.width * unit)))
            else:
                draw.polygon(places, fill=line.colour)


class Pencil:
    """The hand that draws one brief: wobbly lines, hatching, and the few things it has learnt to draw."""

    def __init__(self, brief: SketchSpec) -> None:
        self.random = random.Random(brief.seed)
        short = min(brief.width, brief.height)
        self.wide, self.high = brief.width / short, brief.height / short
        self.pixel = 1 / short
        self.prompt = brief.prompt.lower()
        self.paper = self.random.choice(PAPERS)
        self.colours = list(self.random.choice(PALETTES))
        self.lines: list[Line] = []

    # --- lines ---

    def line(self, points: list[Point], colour: Colour = GRAPHITE, width: float = 0.003) -> None:
        """One movement through the points, a little beside each of them."""
        off = min(0.004, width * 1.2)
        at = self.random.uniform
        self.lines.append(Line([(x + at(-off, off), y + at(-off, off)) for x, y in points], colour, width))

    def outline(self, points: list[Point], colour: Colour = GRAPHITE, width: float = 0.003) -> None:
        """The same line twice, as one who searches for it; once where nobody would see the second."""
        self.line(points, colour, max(width, self.pixel * 0.7))
        if self.pixel < 0.008:
            self.line(points, colour, width * 0.6)

    def hatch(self, shape: list[Point], colour: Colour, angle: float, gap: float = 0.012) -> None:
        """Fills a closed shape with parallel strokes `gap` apart; fewer strokes where pixels are few."""
        gap = max(gap, self.pixel * 2.2)
        sine, cosine = math.sin(angle), math.cos(angle)
        turned = [(x * cosine + y * sine, y * cosine - x * sine) for x, y in shape]
        edges = list(zip(turned, turned[1:] + turned[:1], strict=True))
        level, bottom = min(y for _, y in turned) + gap / 2, max(y for _, y in turned)
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
        turned_back = [(x * cosine - y * sine, x * sine + y * cosine) for x, y in ends]
        self.line(turned_back, self._tint(colour), gap * self.random.uniform(0.34, 0.5))

    def _tint(self, colour: Colour) -> Colour:
        """Coloured pencil: the paper shines through, here more, there less."""
        press = self.random.choice((0.5, 0.62, 0.74))
        r, g, b = (
            round(ink * press + sheet * (1 - press)) for ink, sheet in zip(colour, self.paper, strict=True)
        )
        return (r, g, b)

    def round(
        self, x: float, y: float, rx: float, ry: float, start: float = 0, turn: float = 1
    ) -> list[Point]:
        """Points of an ellipse, from `start` on, `turn` of the way round."""
        count = max(8, min(40, int(max(rx, ry) / self.pixel / 1.5)))
        angles = [2 * math.pi * (start + turn * i / count) for i in range(count + 1)]
        return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]

    # --- the scene ---

    def scene(self) -> None:
        """Sky, land, one thing to look at, and the frame."""
        horizon = self.high * self.random.uniform(0.42, 0.5)
        self.sky(horizon)
        ground = self.hills(horizon)
        motif = next((MOTIFS[name] for name in MOTIFS if name in self.prompt), None)
        draw = motif or self.random.choice(list(MOTIFS.values()))
        x = self.wide * self.random.uniform(0.3, 0.7)
        draw(self, x, ground + self.random.uniform(0.02, 0.06), self.random.uniform(0.3, 0.38))
        self.meadow(ground)
        self.frame()

    def sky(self, horizon: float) -> None:
        sun, blue = self.colours[0], self.colours[1]
        x = self.wide * self.random.choice((self.random.uniform(0.15, 0.35), self.random.uniform(0.65, 0.85)))
        y, radius = horizon * self.random.uniform(0.25, 0.5), self.random.uniform(0.06, 0.11)
        for _ in range(self.random.randint(2, 4)):
            self.cloud(self.wide * self.random.random(), horizon * self.random.uniform(0.1, 0.7), blue)
        disc = self.round(x, y, radius, radius, self.random.random())
        self.hatch(disc, sun, self.random.uniform(0.4, 1.2), 0.009)
        self.outline(disc)
        self.rays(x, y, radius, sun)
        for _ in range(self.random.randint(2, 6)):
            self.bird(self.wide * self.random.uniform(0.1, 0.9), horizon * self.random.uniform(0.15, 0.75))

    def cloud(self, x: float, y: float, colour: Colour) -> None:
        size = self.random.uniform(0.05, 0.09)
        bumps = [
            self.round(x + i * size, y, size * 0.7, size * (0.9 - 0.35 * abs(i)), 0.5, 0.5)
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
        """Two or three ridges, the nearest last; where its middle is."""
        rise, middle, count = self.random.uniform(0.04, 0.09), horizon, self.random.randint(2, 3)
        for i in range(count):
            middle = horizon + i * 0.09
            ridge = self.ridge(middle, rise / (1 + i))
            foot = self.high if i == count - 1 else middle + 0.13
            land = [*ridge, (self.wide, foot), (0.0, foot)]
            self.hatch(
                land, self.colours[(1, 2, 2)[i]], (0.5, -0.35, 0.2)[i] + self.random.uniform(-0.2, 0.2), 0.015
            )
            self.outline(ridge)
        return middle

    def ridge(self, middle: float, rise: float) -> list[Point]:
        waves = [(rise / n, self.random.uniform(1.5, 3.5) * n, self.random.uniform(0, 7)) for n in (1, 2, 4)]
        count = max(6, min(48, int(self.wide / self.pixel / 8)))
        along = [self.wide * i / count for i in range(count + 1)]
        return [(x, middle + sum(a * math.sin(f * x + p) for a, f, p in waves)) for x in along]

    def meadow(self, ground: float) -> None:
        green, accent = self.colours[2], self.colours[3]
        area = self.wide * max(0.0, self.high - ground)
        for _ in range(int(min(90 * area, area / (self.pixel * 9) ** 2))):
            x, y = self.wide * self.random.random(), self.random.uniform(ground + 0.05, self.high)
            tall = self.random.uniform(0.015, 0.03)
            for lean in (-0.4, 0.0, 0.5):
                self.line(
                    [(x, y), (x + lean * tall / 2, y - tall * 0.6), (x + lean * tall, y - tall)],
                    green,
                    0.0026,
                )
            if self.random.random() < 0.2:
                self.line(self.round(x, y - tall, 0.005, 0.005), accent, 0.005)

    def frame(self) -> None:
        inset = 0.022
        corners = [(inset, inset), (self.wide - inset, inset), (self.wide - inset, self.high - inset)]
        corners += [(inset, self.high - inset), (inset, inset)]
        for start, end in pairwise(corners):
            self.outline([start, end], FAINT, 0.002)

    def filled(self, shape: list[Point], colour: Colour, angle: float, gap: float = 0.01) -> None:
        """A closed shape, coloured in and outlined, hiding what is behind it."""
        self.lines.append(Line(shape, self.paper, 0))
        self.hatch(shape, colour, angle, gap)
        self.outline([*shape, shape[0]], width=0.0036)


# --- the few things it has learnt to draw: at (x, y), `size` high, standing on y ---


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
    endpoint = [(x - size * 0.08, y), (x - size * 0.08, y - size * 0.3), (x + size * 0.08, y - size * 0.3)]
    pencil.filled([*endpoint, (x + size * 0.08, y)], pencil.colours[2], 1.5, 0.008)
    for side in (-1, 1):
        left, top, edge = x + side * half * 0.6 - size * 0.07, y - size * 0.42, size * 0.14
        pane = [(left, top), (left + edge, top), (left + edge, top + edge), (left, top + edge)]
        pencil.filled(pane, pencil.colours[1], 0.8, 0.012)
        pencil.line([(left + edge / 2, top), (left + edge / 2, top + edge)])
        pencil.line([(left, top + edge / 2), (left + edge, top + edge / 2)])
    for i in range(3):
        puff = size * (0.05 + 0.02 * i)
        drift = pencil.round(
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
            crown = pencil.round(
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
        gore = pencil.round(x, centre, radius * half, radius, 0.3 * i)
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
        leaf = pencil.round(root + size * 0.08, y - size * part * 0.3, size * 0.1, size * 0.035, 0.5)
        pencil.filled(leaf[:-1], pencil.colours[2], 0.3, 0.008)
        for i in range(7):
            angle = 2 * math.pi * i / 7
            place = (head[0] + petal * math.cos(angle), head[1] + petal * math.sin(angle))
            pencil.filled(
                pencil.round(*place, petal * 0.62, petal * 0.62)[:-1], pencil.colours[colour], angle, 0.009
            )
        pencil.filled(pencil.round(*head, petal * 0.6, petal * 0.6)[:-1], pencil.colours[0], 0.8, 0.007)


def cat(pencil: Pencil, x: float, y: float, size: float) -> None:
    fur, head = pencil.colours[0], (x, y - size * 0.78)
    tail = pencil.round(x + size * 0.34, y - size * 0.28, size * 0.2, size * 0.24, 0.22, -0.55)
    pencil.outline(tail, fur, 0.018)
    pencil.filled(pencil.round(x, y - size * 0.3, size * 0.3, size * 0.32)[:-1], fur, 1.2)
    for side in (-1, 1):
        ear = [
            (head[0] + side * size * 0.21, head[1] - size * 0.06),
            (head[0] + side * size * 0.2, head[1] - size * 0.32),
        ]
        pencil.filled([*ear, (head[0] + side * size * 0.04, head[1] - size * 0.17)], pencil.colours[3], 0.6)
    pencil.filled(pencil.round(*head, size * 0.24, size * 0.2)[:-1], fur, 0.5)
    for side in (-1, 1):
        pencil.line(
            pencil.round(head[0] + side * size * 0.09, head[1] - size * 0.02, size * 0.02, size * 0.03),
            width=0.007,
        )
        for lift in (-0.03, 0.02):
            start = (head[0] + side * size * 0.1, head[1] + size * 0.08)
            pencil.line([start, (head[0] + side * size * 0.34, head[1] + size * (0.06 + lift))])
        pencil.filled(
            pencil.round(x + side * size * 0.12, y - size * 0.03, size * 0.1, size * 0.05)[:-1], fur, 0.1
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


def caption(image: Image.Image, lines: tuple[str, ...], box: Box | None = None) -> Box:
    """Writes the claim and as much of `lines` as fits at the foot of `box`, in place; where it stands now."""
    left, top, right, bottom = box or (0, 0, *image.size)
    short = min(right - left, bottom - top)
    size, margin = short // 48 + 7, max(1, short // 40)
    room = right - left - 4 * margin
    lines = tuple(_legible(line) for line in lines)
    whole = _font(size).getlength(CLAIM) <= room
    rows = _rows(lines, size, room, short // (5 * size)) if whole else _word(size, room)
    if rows:
        return _note(image, rows, size, margin, (left, bottom))
    return _corner(image, (left, top, right, bottom))


def _rows(lines: tuple[str, ...], size: int, room: int, most: int) -> list[str]:
    """The claim, then the lines; the first of them may take two rows where there is room for that."""
    spare = most - 1 - len(lines)
    rows = [_cut(CLAIM, size, room)]
    for i, line in enumerate(lines):
        head = _cut(line, size, room)
        if i == 0 and spare > 0 and head.endswith("…"):
            head = head[: head.rfind(" ")] if " " in head else head[:-1]
            rows.append(head)
            head = _cut(line[len(head) :].strip(), size, room)
        rows.append(head)
    return [row for row in rows[: max(1, most)] if row]


def _note(image: Image.Image, rows: list[str], size: int, margin: int, foot: tuple[int, int]) -> Box:
    step, (left, bottom) = size * 5 // 4, foot
    draw, font = ImageDraw.Draw(image), _font(size)
    wide = math.ceil(max(font.getlength(row) for row in rows)) + 2 * margin
    top = bottom - margin - step * len(rows) - margin
    place = (left + margin, top, left + margin + wide + 1, bottom - margin)
    draw.rectangle((*place[:2], place[2] - 1, place[3] - 1), fill=NOTE, outline=FAINT)
    for i, row in enumerate(rows):
        draw.text(
            (left + 2 * margin, top + margin // 2 + i * step),
            row,
            fill=GRAPHITE if i else (150, 52, 44),
            font=font,
        )
    return place


def _corner(image: Image.Image, box: Box) -> Box:
    """The mark of pictures too small for a word: a red corner."""
    left, top, right, bottom = box
    side = max(1, min(right - left, bottom - top) // 4)
    ImageDraw.Draw(image).polygon(
        [(left, bottom - 1), (left + side, bottom - 1), (left, bottom - 1 - side)], (150, 52, 44)
    )
    return left, bottom - 1 - side, left + side + 1, bottom


def _legible(text: str) -> str:
    """`text` on one line, in the letters the font has: accents are dropped, other scripts become an ellipsis."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text[:1000]) if not unicodedata.combining(c))
    return re.sub(r"[^ -~“”’…·]+", "…", " ".join(plain.split()))


def _word(size: int, room: int) -> list[str]:
    return ["SKETCH"] if _font(size).getlength("SKETCH") <= room else []


def _cut(text: str, size: int, room: float) -> str:
    """`text` on one row, cut with an ellipsis where it is too long; '' when nothing would be left."""
    font = _font(size)
    if len(text) < 300 and font.getlength(text) <= room:
        return text
    keep = min(len(text), 300)
    while keep and font.getlength(text[:keep] + "…") > room:
        keep = min(keep - 1, int(keep * room / font.getlength(text[:keep] + "…")))
    return text[:keep].rstrip() + "…" if keep > 2 else ""


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
