"""Proves that the compared routes give the same pixels, and reports what each of them sends over the network."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageChops

from bench.clients import Route
from bench.testbed import Testbed


def compare_pixels(testbed: Testbed, routes: Sequence[Route], size: int) -> dict[str, Any]:
    """One picture from each of `routes` with the same seed. By route: whether its pixels are those of the first one (those
    of other servers may differ), the bytes of the PNG, and the bytes sent and received for it by the client.

    Raises RuntimeError if a route of this engine gives other pixels: the comparison would mean nothing."""
    seed, others = next(testbed.seeds), {peer.name for peer in testbed.options.peers}
    expected: Image.Image | None = None
    results = {}
    for route in routes:
        picture, wire = _draw(route, seed)
        pixels = Image.open(io.BytesIO(picture)).convert("RGB")
        expected = expected or pixels
        is_same = ImageChops.difference(expected, pixels).getbbox() is None
        if not is_same and route.name not in others:
            raise RuntimeError(f"{route.name} gives other pixels than the direct client at {size}x{size}.")
        results[route.name] = {"same_pixels": is_same, "png_bytes": len(picture), "wire_bytes": wire}
    return results


def same_pixels(routes: Sequence[Route], seed: int) -> bool:
    """Whether all routes draw the same picture with this seed."""
    pictures = [Image.open(io.BytesIO(_draw(route, seed)[0])).convert("RGB") for route in routes]
    return all(ImageChops.difference(pictures[0], other).getbbox() is None for other in pictures[1:])


def _draw(route: Route, seed: int) -> tuple[bytes, int | None]:
    with contextlib.closing(route.open()) as client:
        client.draw(seed + 1)  # the first picture of a connection may need more
        before = client.wire_bytes()
        picture = client.draw(seed).picture
        after = client.wire_bytes()
        return picture, None if before is None or after is None else after - before
