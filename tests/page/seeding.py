"""Images in a state directory before its server starts, written straight into store and index."""

from __future__ import annotations

import io
import random
import time
from pathlib import Path

from PIL import Image

from image_store.index import ImageIndex
from image_store.names import image_name
from image_store.records import ImageFacts

SIZES = ((1024, 1024), (832, 1216), (1216, 832), (1344, 768), (512, 512))
WORDS = [
    "lighthouse",
    "dusk",
    "storm",
    "cat",
    "astronaut",
    "forest",
    "glass",
    "city",
    "neon",
    "river",
    "mountain",
    "portrait",
    "oil",
    "fox",
]
MODELS = ("sdxl-turbo", "sd-1.5-pruned-emaonly")
INTERVAL_S = 600


def seed_images(state: Path, count: int, now: float | None = None) -> list[str]:
    """The names of `count` images, newest first, one each ten minutes. Every 50th has markup in its prompt; those with
    an even place are of the first model."""
    chance, now = random.Random(4), time.time() if now is None else now
    folder = state / "images"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {size: _picture(size) for size in SIZES}
    index = ImageIndex(folder)
    names = [image_name("png") for _ in range(count)]
    # The oldest first: the index never lists an image before one that it had already.
    for place, name in reversed(list(enumerate(names))):
        size = chance.choice(SIZES)
        data = pictures[size]
        (folder / name).write_bytes(data)
        prompt = " ".join(chance.sample(WORDS, 4)) + f" number{place}"
        if place % 50 == 49:
            prompt += " <script>document.title = 'broken'</script>"
        model = MODELS[place % 2]
        facts = ImageFacts(
            width=size[0],
            height=size[1],
            model=model,
            task="generate",
            prompt=prompt,
            seed=1000 + place,
            settings={"model": model, "prompt": prompt, "size": f"{size[0]}x{size[1]}", "steps": 3},
            adjusted=(
                {"field": "size", "asked": "1000x1000", "done": "1024x1024", "why": "a multiple of 8"},
            ),
            ignored=(),
            request_id=f"req-{place}",
            index=0,
            engine="left" if place == 1 else None,
        )
        assert index.add(name, len(data), now - INTERVAL_S * place, facts)
    return names


def _picture(size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").quantize(16).save(stream, "png")
    return stream.getvalue()
