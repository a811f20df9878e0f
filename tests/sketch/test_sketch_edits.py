"""What the sketch engine draws upon a picture: strength, mask and batch show, and what is to stay stays."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from sketch.drawing import NOTE, Box, caption
from sketch.nodes.images import cropped
from sketch.nodes.values import Images, Mark
from tests.sketch.sketch_client import Client, distance, graph

PICTURE = Image.new("RGB", (256, 256), (20, 60, 160))
RIGHT = Image.new("L", (256, 256), 0)
RIGHT.paste(255, (128, 0, 256, 256))
LEFT_HALF, RIGHT_HALF = (0, 0, 128, 256), (128, 0, 256, 256)
SCHEDULES: dict[str, dict[str, Any]] = {
    "BasicScheduler": {"model": ["model", 0], "scheduler": "normal", "steps": 4},
    "SDTurboScheduler": {"model": ["model", 0], "steps": 2},
    "AlignYourStepsScheduler": {"model_type": "SD1", "steps": 10},
    "GITSScheduler": {"coeff": 1.2, "steps": 10},
}


def from_image(client: Client, picture: Image.Image, strength: float, amount: int = 1) -> dict[str, Any]:
    """The graph upon a picture, which it loads, encodes and repeats."""
    wanted = graph(sampler={"latent_image": ["repeated", 0], "denoise": strength})
    wanted["loaded"] = {"class_type": "LoadImage", "inputs": {"image": client.upload(picture)}}
    wanted["encoded"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["loaded", 0], "vae": ["model", 2]}}
    wanted["repeated"] = {
        "class_type": "RepeatLatentBatch",
        "inputs": {"samples": ["encoded", 0], "amount": amount},
    }
    return wanted


def within(client: Client, wanted: dict[str, Any], mask: Image.Image) -> dict[str, Any]:
    """The same, drawn only where the mask is white."""
    loaded = {"image": client.upload(mask), "channel": "red"}
    wanted["mask"] = {"class_type": "LoadImageMask", "inputs": loaded}
    masked = {"samples": ["encoded", 0], "mask": ["mask", 0]}
    wanted["masked"] = {"class_type": "SetLatentNoiseMask", "inputs": masked}
    wanted["repeated"]["inputs"]["samples"] = ["masked", 0]
    return wanted


def scheduled(wanted: dict[str, Any], scheduler: str, strength: float) -> dict[str, Any]:
    """The same with a SamplerCustom by the sigmas of this scheduler."""
    was = wanted["sampler"]["inputs"]
    inputs = {name: was[name] for name in ("model", "positive", "negative", "latent_image", "cfg")}
    inputs |= {"add_noise": True, "noise_seed": 1, "sampler": ["euler", 0], "sigmas": ["sigmas", 0]}
    wanted["sampler"] = {"class_type": "SamplerCustom", "inputs": inputs}
    wanted["euler"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    sigmas = SCHEDULES[scheduler] | {"denoise": strength}
    wanted["sigmas"] = {"class_type": scheduler, "inputs": sigmas}
    return wanted


def test_the_less_denoise_the_more_of_the_input_stays(client: Client) -> None:
    far = [
        distance(client.draw(from_image(client, PICTURE, strength)).picture(), PICTURE)
        for strength in (0.0, 0.3, 0.5, 0.9, 1.0)
    ]
    assert far == sorted(set(far))
    assert far[0] == 0


@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_the_strength_of_a_schedule_counts_as_that_of_a_sampler(client: Client, scheduler: str) -> None:
    far = []
    for strength in (0.0, 0.3, 0.9):
        wanted = scheduled(from_image(client, PICTURE, 1.0), scheduler, strength)
        far.append(distance(client.draw(wanted).picture(), PICTURE))
    assert far == sorted(set(far))
    assert far[0] == 0


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_a_mask_confines_the_drawing_to_what_is_white(client: Client, strength: float) -> None:
    wanted = within(client, from_image(client, PICTURE, strength, amount=2), RIGHT)
    drawn = client.draw(wanted)
    for picture in (drawn.picture(0), drawn.picture(1)):
        assert picture.crop(LEFT_HALF).tobytes() == PICTURE.crop(LEFT_HALF).tobytes()
        assert distance(picture.crop(RIGHT_HALF), PICTURE.crop(RIGHT_HALF)) > 100 * strength
    assert drawn.picture(0).tobytes() != drawn.picture(1).tobytes()


def test_previews_keep_to_the_mask_too(client: Client) -> None:
    drawn = client.draw(within(client, from_image(client, PICTURE, 1.0), RIGHT))
    assert len(drawn.frames) == 3
    for frame in drawn.frames:
        assert distance(frame.crop((0, 0, 120, 256)), PICTURE.crop((0, 0, 120, 256))) < 10
        assert distance(frame.crop(RIGHT_HALF), PICTURE.crop(RIGHT_HALF)) > 100


def test_each_of_a_repeated_batch_is_drawn_differently_and_the_first_as_it_would_be_alone(
    client: Client,
) -> None:
    many = client.draw(from_image(client, PICTURE, 0.8, amount=3))
    alone = client.draw(from_image(client, PICTURE, 0.8)).picture()
    assert len({many.picture(i).tobytes() for i in range(3)}) == 3
    assert many.picture().tobytes() == alone.tobytes()


def test_another_model_beside_a_mask_shows(client: Client) -> None:
    plain = within(client, from_image(client, PICTURE, 1.0), RIGHT)
    differential = within(client, from_image(client, PICTURE, 1.0), RIGHT)
    differential["soft"] = {"class_type": "DifferentialDiffusion", "inputs": {"model": ["model", 0]}}
    differential["sampler"]["inputs"]["model"] = ["soft", 0]
    assert client.draw(plain).picture().tobytes() != client.draw(differential).picture().tobytes()


def test_a_hole_for_inpainting_is_grey_before_it_is_drawn_and_reaches_a_little_further(
    client: Client,
) -> None:
    wanted = within(client, from_image(client, PICTURE, 0.01), RIGHT)
    inputs = {"pixels": ["loaded", 0], "vae": ["model", 2], "mask": ["mask", 0], "grow_mask_by": 20}
    wanted["encoded"] = {"class_type": "VAEEncodeForInpaint", "inputs": inputs}
    wanted["repeated"]["inputs"]["samples"] = ["encoded", 0]
    drawn = client.draw(wanted).picture()
    untouched = (0, 0, 118, 256)
    assert drawn.crop(untouched).tobytes() == PICTURE.crop(untouched).tobytes()
    grey = Image.new("RGB", (128, 100), (127, 127, 127))
    assert distance(drawn.crop((128, 0, 256, 100)), grey) < 10


# --- what says that it is a sketch ----------------------------------------------------------------------------

LINES = ("a boat", "seed 1")
WHOLE = (0, 0, 256, 256)


def captioned() -> Images:
    picture = PICTURE.copy()
    return Images((picture,), Mark(LINES, WHOLE, caption(picture, LINES)))


def test_a_cut_through_the_caption_has_it_written_again() -> None:
    cut = cropped(captioned(), (4, 4, 250, 246))
    fresh = PICTURE.crop((4, 4, 250, 246))
    note = caption(fresh, LINES)
    assert cut.mark == Mark(LINES, (0, 0, 246, 242), note)
    assert cut.pictures[0].crop(note).tobytes() == fresh.crop(note).tobytes()


@pytest.mark.parametrize("box", [(0, 100, 256, 256), (2, 2, 256, 256), WHOLE])
def test_a_cut_beside_the_caption_leaves_all_as_it_is(box: Box) -> None:
    assert cropped(captioned(), box).pictures[0].tobytes() == captioned().pictures[0].crop(box).tobytes()


def test_a_cut_of_what_was_not_drawn_gets_no_caption() -> None:
    picture, box = PICTURE.copy(), (128, 0, 256, 256)
    drawn_on = Images((picture,), Mark(LINES, box, caption(picture, LINES, box)))
    cut = cropped(drawn_on, LEFT_HALF)
    assert (cut.mark, cut.pictures[0].tobytes()) == (None, PICTURE.crop(LEFT_HALF).tobytes())


@pytest.mark.parametrize("kept", [(64, 0, 256, 256), (0, 64, 256, 256), (60, 60, 190, 190), (0, 0, 190, 256)])
def test_the_caption_stands_where_the_mask_lets_it_be_seen(client: Client, kept: Box) -> None:
    mask = Image.new("L", (256, 256), 255)
    mask.paste(0, kept)
    drawn = client.draw(within(client, from_image(client, PICTURE, 1.0), mask)).picture()
    colours = {colour: count for count, colour in drawn.convert("RGB").getcolors(256 * 256) or []}
    assert colours[NOTE] > 200
    assert drawn.crop(kept).tobytes() == PICTURE.crop(kept).tobytes()
