"""Drawing over a picture: strength, mask and batch take effect, and protected pixels do not change."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from sketch.drawing import NOTE_COLOUR, Box, draw_caption
from sketch.nodes.images import crop
from sketch.nodes.values import Caption, Images
from tests.sketch.sketch_client import Client, distance, graph

PICTURE = Image.new("RGB", (256, 256), (20, 60, 160))
RIGHT_MASK = Image.new("L", (256, 256), 0)
RIGHT_MASK.paste(255, (128, 0, 256, 256))
LEFT_HALF, RIGHT_HALF = (0, 0, 128, 256), (128, 0, 256, 256)
SCHEDULES: dict[str, dict[str, Any]] = {
    "BasicScheduler": {"model": ["model", 0], "scheduler": "normal", "steps": 4},
    "SDTurboScheduler": {"model": ["model", 0], "steps": 2},
    "AlignYourStepsScheduler": {"model_type": "SD1", "steps": 10},
    "GITSScheduler": {"coeff": 1.2, "steps": 10},
}


def from_image(client: Client, picture: Image.Image, strength: float, amount: int = 1) -> dict[str, Any]:
    """The graph drawing over a picture, which it loads, encodes and repeats."""
    prompt = graph(sampler={"latent_image": ["repeated", 0], "denoise": strength})
    prompt["loaded"] = {"class_type": "LoadImage", "inputs": {"image": client.upload(picture)}}
    prompt["encoded"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["loaded", 0], "vae": ["model", 2]}}
    prompt["repeated"] = {
        "class_type": "RepeatLatentBatch",
        "inputs": {"samples": ["encoded", 0], "amount": amount},
    }
    return prompt


def with_mask(client: Client, prompt: dict[str, Any], mask: Image.Image) -> dict[str, Any]:
    """The same graph, drawing only where the mask is white."""
    loaded = {"image": client.upload(mask), "channel": "red"}
    prompt["mask"] = {"class_type": "LoadImageMask", "inputs": loaded}
    masked = {"samples": ["encoded", 0], "mask": ["mask", 0]}
    prompt["masked"] = {"class_type": "SetLatentNoiseMask", "inputs": masked}
    prompt["repeated"]["inputs"]["samples"] = ["masked", 0]
    return prompt


def with_scheduler(prompt: dict[str, Any], scheduler: str, strength: float) -> dict[str, Any]:
    """The same graph with a SamplerCustom that gets its sigmas from this scheduler."""
    old_inputs = prompt["sampler"]["inputs"]
    inputs = {name: old_inputs[name] for name in ("model", "positive", "negative", "latent_image", "cfg")}
    inputs |= {"add_noise": True, "noise_seed": 1, "sampler": ["euler", 0], "sigmas": ["sigmas", 0]}
    prompt["sampler"] = {"class_type": "SamplerCustom", "inputs": inputs}
    prompt["euler"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    sigmas = SCHEDULES[scheduler] | {"denoise": strength}
    prompt["sigmas"] = {"class_type": scheduler, "inputs": sigmas}
    return prompt


def test_with_less_denoise_more_of_the_input_is_kept(client: Client) -> None:
    distances = [
        distance(client.draw(from_image(client, PICTURE, strength)).picture(), PICTURE)
        for strength in (0.0, 0.3, 0.5, 0.9, 1.0)
    ]
    assert distances == sorted(set(distances))
    assert distances[0] == 0


@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_the_denoise_of_a_scheduler_works_like_that_of_a_sampler(client: Client, scheduler: str) -> None:
    distances = []
    for strength in (0.0, 0.3, 0.9):
        prompt = with_scheduler(from_image(client, PICTURE, 1.0), scheduler, strength)
        distances.append(distance(client.draw(prompt).picture(), PICTURE))
    assert distances == sorted(set(distances))
    assert distances[0] == 0


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_a_mask_limits_the_drawing_to_its_white_pixels(client: Client, strength: float) -> None:
    prompt = with_mask(client, from_image(client, PICTURE, strength, amount=2), RIGHT_MASK)
    drawn = client.draw(prompt)
    for picture in (drawn.picture(0), drawn.picture(1)):
        assert picture.crop(LEFT_HALF).tobytes() == PICTURE.crop(LEFT_HALF).tobytes()
        assert distance(picture.crop(RIGHT_HALF), PICTURE.crop(RIGHT_HALF)) > 100 * strength
    assert drawn.picture(0).tobytes() != drawn.picture(1).tobytes()


def test_previews_respect_the_mask(client: Client) -> None:
    drawn = client.draw(with_mask(client, from_image(client, PICTURE, 1.0), RIGHT_MASK))
    assert len(drawn.frames) == 3
    for frame in drawn.frames:
        assert distance(frame.crop((0, 0, 120, 256)), PICTURE.crop((0, 0, 120, 256))) < 10
        assert distance(frame.crop(RIGHT_HALF), PICTURE.crop(RIGHT_HALF)) > 100


def test_pictures_of_a_repeated_batch_differ_and_the_first_is_the_same_as_one_drawn_alone(
    client: Client,
) -> None:
    batch = client.draw(from_image(client, PICTURE, 0.8, amount=3))
    alone = client.draw(from_image(client, PICTURE, 0.8)).picture()
    assert len({batch.picture(i).tobytes() for i in range(3)}) == 3
    assert batch.picture().tobytes() == alone.tobytes()


def test_another_model_changes_a_masked_drawing(client: Client) -> None:
    plain = with_mask(client, from_image(client, PICTURE, 1.0), RIGHT_MASK)
    differential = with_mask(client, from_image(client, PICTURE, 1.0), RIGHT_MASK)
    differential["soft"] = {"class_type": "DifferentialDiffusion", "inputs": {"model": ["model", 0]}}
    differential["sampler"]["inputs"]["model"] = ["soft", 0]
    assert client.draw(plain).picture().tobytes() != client.draw(differential).picture().tobytes()


def test_a_hole_for_inpainting_is_grey_and_slightly_larger_than_the_mask(
    client: Client,
) -> None:
    prompt = with_mask(client, from_image(client, PICTURE, 0.01), RIGHT_MASK)
    inputs = {"pixels": ["loaded", 0], "vae": ["model", 2], "mask": ["mask", 0], "grow_mask_by": 20}
    prompt["encoded"] = {"class_type": "VAEEncodeForInpaint", "inputs": inputs}
    prompt["repeated"]["inputs"]["samples"] = ["encoded", 0]
    drawn = client.draw(prompt).picture()
    untouched = (0, 0, 118, 256)
    assert drawn.crop(untouched).tobytes() == PICTURE.crop(untouched).tobytes()
    grey = Image.new("RGB", (128, 100), (127, 127, 127))
    assert distance(drawn.crop((128, 0, 256, 100)), grey) < 10


# --- captions -------------------------------------------------------------------------------------------------

LINES = ("a boat", "seed 1")
WHOLE = (0, 0, 256, 256)


def captioned() -> Images:
    picture = PICTURE.copy()
    return Images((picture,), Caption(LINES, WHOLE, draw_caption(picture, LINES)))


def test_a_crop_that_cuts_the_caption_draws_it_again() -> None:
    cropped = crop(captioned(), (4, 4, 250, 246))
    fresh = PICTURE.crop((4, 4, 250, 246))
    note = draw_caption(fresh, LINES)
    assert cropped.caption == Caption(LINES, (0, 0, 246, 242), note)
    assert cropped.pictures[0].crop(note).tobytes() == fresh.crop(note).tobytes()


@pytest.mark.parametrize("box", [(0, 100, 256, 256), (2, 2, 256, 256), WHOLE])
def test_a_crop_that_does_not_cut_the_caption_changes_no_pixels(box: Box) -> None:
    assert crop(captioned(), box).pictures[0].tobytes() == captioned().pictures[0].crop(box).tobytes()


def test_a_crop_without_drawn_pixels_gets_no_caption() -> None:
    picture, box = PICTURE.copy(), (128, 0, 256, 256)
    drawn_on = Images((picture,), Caption(LINES, box, draw_caption(picture, LINES, box)))
    cropped = crop(drawn_on, LEFT_HALF)
    assert (cropped.caption, cropped.pictures[0].tobytes()) == (None, PICTURE.crop(LEFT_HALF).tobytes())


@pytest.mark.parametrize(
    "protected", [(64, 0, 256, 256), (0, 64, 256, 256), (60, 60, 190, 190), (0, 0, 190, 256)]
)
def test_the_caption_is_drawn_where_the_mask_shows_it(client: Client, protected: Box) -> None:
    mask = Image.new("L", (256, 256), 255)
    mask.paste(0, protected)
    drawn = client.draw(with_mask(client, from_image(client, PICTURE, 1.0), mask)).picture()
    colours = {colour: count for count, colour in drawn.convert("RGB").getcolors(256 * 256) or []}
    assert colours[NOTE_COLOUR] > 200
    assert drawn.crop(protected).tobytes() == PICTURE.crop(protected).tobytes()
