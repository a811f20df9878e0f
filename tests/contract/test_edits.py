"""What Easel relies on when it edits pictures: uploads to the temp folder, and the nodes that mask, repeat, composite
and crop. True of 0.3.64, 0.8.0, 0.33.0 and the sketch engine."""

from __future__ import annotations

import io
import uuid
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageDraw
from raw_comfyui import (
    Comfy,
    Socket,
    assert_steps,
    composite,
    data_of,
    edited,
    file_of,
    flat,
    kinds,
    picture_of,
    png,
    sampled,
    with_schedule,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def loading(name: str) -> dict[str, Any]:
    """A graph that loads a picture and saves it."""
    return flat() | {"source": {"class_type": "LoadImage", "inputs": {"image": name}}}


def colourful(width: int, height: int) -> Image.Image:
    """A picture in which all pixels differ."""
    channels = [Image.linear_gradient("L").rotate(turn).resize((width, height)) for turn in (0, 90, 180)]
    return Image.merge("RGB", channels)


def largest_difference(one: Image.Image, other: Image.Image) -> int:
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


# --- uploads to the temp folder -------------------------------------------------------------------------------


def test_an_upload_to_the_temp_folder_is_loaded_by_its_annotated_name(comfy: Comfy) -> None:
    name, picture = f"{uuid.uuid4().hex}.png", colourful(24, 16)
    stored = comfy.upload(file_of(picture), name, type="temp", subfolder="easel", overwrite="true")
    assert stored == {"name": name, "subfolder": "easel", "type": "temp"}
    assert comfy.get("/view", params={"filename": name, "subfolder": "easel", "type": "temp"}).ok
    (loaded,) = comfy.pictures(loading(f"easel/{name} [temp]"))
    assert loaded.tobytes() == picture.tobytes()


def test_whether_an_upload_is_there_can_be_asked_without_its_content(comfy: Comfy) -> None:
    name = comfy.upload(png(), type="temp", subfolder="easel")["name"]
    place = {"filename": name, "subfolder": "easel", "type": "temp"}
    found = comfy.head("/view", params=place)
    assert (found.status_code, found.content) == (200, b"")
    assert comfy.head("/view", params={**place, "filename": f"no-{name}"}).status_code == 404


@pytest.mark.parametrize("other_name", ["{}", "easel/{}", "{} [temp]", "easel/{} [output]"])
def test_an_upload_to_the_temp_folder_is_in_no_other_folder(comfy: Comfy, other_name: str) -> None:
    stored = comfy.upload(png(), type="temp", subfolder="easel")
    refused = comfy.submit(loading(other_name.format(stored["name"])))
    assert refused.status_code == 400
    (error,) = refused.json()["node_errors"]["source"]["errors"]
    assert error["type"] == "custom_validation_failed"


def test_an_overwritten_upload_keeps_its_name_and_the_same_graph_loads_the_new_picture(comfy: Comfy) -> None:
    upload = {"name": f"{uuid.uuid4().hex}.png", "type": "temp", "subfolder": "easel", "overwrite": "true"}
    graph = loading(f"easel/{upload['name']} [temp]")
    pixels = []
    for colour in (RED, BLUE, RED):
        assert comfy.upload(png(colour=colour), **upload)["name"] == upload["name"]
        (picture,) = comfy.pictures(graph)
        pixels.append(picture.getpixel((0, 0)))
    assert pixels == [RED, BLUE, RED]


def test_an_upload_overwritten_by_the_same_bytes_stays_cached(comfy: Comfy, engine_url: str) -> None:
    upload = {"name": f"{uuid.uuid4().hex}.png", "type": "temp", "subfolder": "easel", "overwrite": "true"}
    graph = loading(f"easel/{upload['name']} [temp]")
    with Socket(engine_url) as socket:
        for _ in range(2):
            comfy.upload(png(), **upload)
            messages = socket.read_job(comfy.submit_ok(graph, client_id=socket.client_id))
    assert sorted(data_of(messages, "execution_cached")[0]["nodes"]) == ["save", "source"]


# --- masks ----------------------------------------------------------------------------------------------------


def mask_as_picture(
    comfy: Comfy, image: Image.Image, loader: str = "LoadImageMask", **inputs: str
) -> Image.Image:
    """The mask that a loader makes, as a picture: white pasted onto black through it."""
    output = {"LoadImage": 1, "LoadImageMask": 0}[loader]
    graph = flat(colour=0, size=64)
    graph["white"] = flat(colour=0xFFFFFF, size=64)["source"]
    graph["mask"] = {"class_type": loader, "inputs": {"image": comfy.upload_to_temp(image), **inputs}}
    graph["composite"] = composite(["source", 0], ["white", 0], mask=["mask", output])
    graph["save"]["inputs"]["images"] = ["composite", 0]
    (picture,) = comfy.pictures(graph)
    return picture.getchannel("R")


@pytest.mark.parametrize("channel", ["red", "green", "blue"])
def test_a_colour_channel_of_an_upload_can_be_the_mask(comfy: Comfy, channel: str) -> None:
    picture = colourful(64, 64)
    expected = picture.getchannel(channel[0].upper())
    assert mask_as_picture(comfy, picture, channel=channel).tobytes() == expected.tobytes()


@pytest.mark.parametrize("loader", [{"loader": "LoadImage"}, {"channel": "alpha"}])
def test_the_transparent_part_of_an_upload_is_white_in_its_mask(comfy: Comfy, loader: dict[str, str]) -> None:
    picture = Image.new("RGBA", (64, 64), (*RED, 255))
    picture.paste((*RED, 0), (0, 0, 32, 64))
    mask = mask_as_picture(comfy, picture, **loader)
    assert (mask.getpixel((5, 5)), mask.getpixel((50, 5))) == (255, 0)


@pytest.mark.parametrize("loader", [{"loader": "LoadImage"}, {"channel": "alpha"}])
def test_an_upload_without_transparency_has_a_black_mask(comfy: Comfy, loader: dict[str, str]) -> None:
    assert mask_as_picture(comfy, colourful(64, 64), **loader).getextrema() == (0, 0)


# --- compositing, cropping, repeating -------------------------------------------------------------------------


def ramp(width: int = 64, height: int = 64) -> Image.Image:
    """A mask: a black third, a ramp, a white third."""
    mask = Image.new("L", (width, height), 0)
    third = width // 3
    mask.paste(Image.linear_gradient("L").rotate(90).resize((third, height)), (third, 0))
    mask.paste(255, (2 * third, 0, width, height))
    return mask


def composite_on_blue(comfy: Comfy, batch: int, source: Image.Image, **inputs: Any) -> list[Image.Image]:
    """The source pasted onto each of `batch` blue pictures of 64 x 64."""
    graph = flat(colour=0x0000FF, batch=batch)
    graph["over"] = {"class_type": "LoadImage", "inputs": {"image": comfy.upload_to_temp(source)}}
    if "mask" in inputs:
        # In RGB, as Easel sends masks: newer engines load small grey pictures wrongly or not at all.
        loaded = {"image": comfy.upload_to_temp(inputs["mask"].convert("RGB")), "channel": "green"}
        graph["mask"] = {"class_type": "LoadImageMask", "inputs": loaded}
        inputs["mask"] = ["mask", 0]
    graph["composite"] = composite(["source", 0], ["over", 0], **inputs)
    graph["save"]["inputs"]["images"] = ["composite", 0]
    return comfy.pictures(graph)


def test_a_composite_is_exactly_the_source_where_the_mask_is_white_and_the_destination_where_it_is_black(
    comfy: Comfy,
) -> None:
    source, mask, blue = colourful(64, 64), ramp(), Image.new("RGB", (64, 64), BLUE)
    pictures = composite_on_blue(comfy, 3, source, mask=mask)
    assert len(pictures) == 3
    expected = Image.composite(source, blue, mask)
    for picture in pictures:
        assert picture.crop((0, 0, 21, 64)).tobytes() == blue.crop((0, 0, 21, 64)).tobytes()
        assert picture.crop((42, 0, 64, 64)).tobytes() == source.crop((42, 0, 64, 64)).tobytes()
        assert largest_difference(picture, expected) <= 1


def test_a_source_without_a_mask_is_pasted_whole(comfy: Comfy) -> None:
    (picture,) = composite_on_blue(comfy, 1, colourful(64, 64))
    assert picture.tobytes() == colourful(64, 64).tobytes()


@pytest.mark.parametrize("at", [(0, 0), (10, 20), (50, 60), (64, 10), (500, 500)])
def test_a_source_is_pasted_at_its_position_and_cut_at_the_edge(comfy: Comfy, at: tuple[int, int]) -> None:
    source, expected = colourful(24, 16), Image.new("RGB", (64, 64), BLUE)
    expected.paste(source, at)
    (picture,) = composite_on_blue(comfy, 1, source, x=at[0], y=at[1])
    assert picture.tobytes() == expected.tobytes()


def test_a_mask_of_another_size_is_stretched_over_the_source(comfy: Comfy) -> None:
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (4, 0, 8, 8))
    (picture,) = composite_on_blue(comfy, 1, colourful(32, 32), x=16, y=16, mask=mask)
    expected = Image.new("RGB", (64, 64), BLUE)
    stretched = mask.transform((32, 32), Image.Transform.EXTENT, (0, 0, 8, 8), Image.Resampling.BILINEAR)
    expected.paste(colourful(32, 32), (16, 16), stretched)
    assert largest_difference(picture, expected) <= 2


def test_a_source_can_be_stretched_over_the_destination(comfy: Comfy) -> None:
    (picture,) = composite_on_blue(comfy, 1, colourful(200, 100), resize_source=True)
    part = (0, 0, 200, 100)
    expected = colourful(200, 100).transform(
        (64, 64), Image.Transform.EXTENT, part, Image.Resampling.BILINEAR
    )
    assert largest_difference(picture, expected) <= 1


@pytest.mark.parametrize(
    ("crop", "box"),
    [
        ((20, 10, 4, 6), (4, 6, 24, 16)),
        ((64, 48, 0, 0), (0, 0, 64, 48)),
        ((100, 100, 60, 40), (60, 40, 64, 48)),
        ((5, 5, 500, 500), (63, 47, 64, 48)),
    ],
)
def test_a_crop_is_cut_at_the_edge(
    comfy: Comfy, crop: tuple[int, ...], box: tuple[int, int, int, int]
) -> None:
    picture = colourful(64, 48)
    graph = loading(comfy.upload_to_temp(picture))
    inputs = dict(zip(("width", "height", "x", "y"), crop, strict=True))
    graph["crop"] = {"class_type": "ImageCrop", "inputs": {"image": ["source", 0], **inputs}}
    graph["save"]["inputs"]["images"] = ["crop", 0]
    (cut,) = comfy.pictures(graph)
    assert (cut.size, cut.tobytes()) == (picture.crop(box).size, picture.crop(box).tobytes())


def test_a_picture_can_be_repeated(comfy: Comfy) -> None:
    graph = loading(comfy.upload_to_temp(colourful(16, 16)))
    graph["many"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["source", 0], "amount": 3}}
    graph["save"]["inputs"]["images"] = ["many", 0]
    assert [picture.tobytes() for picture in comfy.pictures(graph)] == [colourful(16, 16).tobytes()] * 3


# --- image to image -------------------------------------------------------------------------------------------


def halves(size: int) -> Image.Image:
    """A mask: red (to draw) on the right, green (to keep) on the left."""
    mask = Image.new("RGB", (size, size), (0, 255, 0))
    mask.paste(RED, (size // 2, 0, size, size))
    return mask


def test_each_picture_of_a_batch_changes_only_within_the_mask(comfy: Comfy, checkpoint: str) -> None:
    picture = colourful(64, 64)
    names = [comfy.upload_to_temp(image) for image in (picture, halves(64))]
    drawn = comfy.pictures(edited(checkpoint, *names, crop=(60, 50), batch=3))
    assert [each.size for each in drawn] == [(60, 50)] * 3
    assert {each.crop((0, 0, 32, 50)).tobytes() for each in drawn} == {picture.crop((0, 0, 32, 50)).tobytes()}
    changed = [each.crop((32, 0, 60, 50)).tobytes() for each in drawn]
    assert len({*changed, picture.crop((32, 0, 60, 50)).tobytes()}) == 4


def test_the_first_picture_of_a_batch_is_the_same_as_a_single_one(comfy: Comfy, checkpoint: str) -> None:
    names = [comfy.upload_to_temp(image) for image in (colourful(64, 64), halves(64))]
    alone, first = (
        comfy.pictures(edited(checkpoint, *names, crop=(64, 64), seed=7, batch=batch))[0] for batch in (1, 2)
    )
    assert largest_difference(alone, first) <= 2


@pytest.mark.parametrize("encoder", ["VAEEncodeForInpaint", "InpaintModelConditioning"])
def test_encoders_for_inpainting_give_a_masked_latent(comfy: Comfy, checkpoint: str, encoder: str) -> None:
    names = [comfy.upload_to_temp(image) for image in (colourful(64, 64), halves(64))]
    graph = edited(checkpoint, *names, crop=(64, 64))
    inputs = {"pixels": ["image", 0], "vae": ["checkpoint", 2], "mask": ["red", 0]}
    if encoder == "VAEEncodeForInpaint":
        inputs["grow_mask_by"] = 6
        graph["repeat"]["inputs"]["samples"] = ["inpaint", 0]
    else:
        inputs |= {"positive": ["positive", 0], "negative": ["negative", 0], "noise_mask": True}
        graph["repeat"]["inputs"]["samples"] = ["inpaint", 2]
        graph["sampler"]["inputs"] |= {"positive": ["inpaint", 0], "negative": ["inpaint", 1]}
    graph["inpaint"] = {"class_type": encoder, "inputs": inputs}
    (drawn,) = comfy.pictures(graph)
    assert drawn.crop((0, 0, 32, 64)).tobytes() == colourful(64, 64).crop((0, 0, 32, 64)).tobytes()


SCHEDULES: dict[str, dict[str, Any]] = {
    "BasicScheduler": {"model": ["checkpoint", 0], "scheduler": "normal"},
    "SDTurboScheduler": {"model": ["checkpoint", 0]},
    "AlignYourStepsScheduler": {"model_type": "SD1"},
    "GITSScheduler": {"coeff": 1.2},
}


@pytest.mark.parametrize(
    ("scheduler", "steps", "strength", "sent_steps"),
    [
        ("BasicScheduler", 4, 1.0, 4),
        ("BasicScheduler", 4, 0.3, 4),
        ("SDTurboScheduler", 4, 1.0, 4),
        ("SDTurboScheduler", 4, 0.5, 4),
        ("SDTurboScheduler", 4, 0.3, 3),
        ("SDTurboScheduler", 1, 0.7, 1),
        ("AlignYourStepsScheduler", 10, 1.0, 10),
        ("AlignYourStepsScheduler", 10, 0.7, 7),
        ("AlignYourStepsScheduler", 5, 0.5, 2),
        ("GITSScheduler", 10, 0.3, 3),
    ],
)
def test_a_lower_strength_gives_fewer_steps_in_schedules_that_skip_steps(
    comfy: Comfy,
    engine_url: str,
    checkpoint: str,
    scheduler: str,
    steps: int,
    strength: float,
    sent_steps: int,
    is_newer: bool,
) -> None:
    inputs = SCHEDULES[scheduler] | {"steps": steps, "denoise": strength}
    with Socket(engine_url) as socket:
        graph = with_schedule(sampled(checkpoint), scheduler, inputs)
        messages = socket.read_job(comfy.submit_ok(graph, client_id=socket.client_id))
    assert "execution_success" in kinds(messages)
    told = [(data["value"], data["max"]) for data in data_of(messages, "progress")]
    assert_steps(told, [(step, sent_steps) for step in range(1, sent_steps + 1)], is_newer)


@pytest.mark.parametrize(
    ("scheduler", "strength"),
    [("AlignYourStepsScheduler", 0.04), ("AlignYourStepsScheduler", 0.0), ("SDTurboScheduler", 0.05)],
)
def test_a_schedule_without_steps_succeeds_without_progress(
    comfy: Comfy, engine_url: str, checkpoint: str, scheduler: str, strength: float
) -> None:
    inputs = SCHEDULES[scheduler] | {"steps": 5, "denoise": strength}
    with Socket(engine_url) as socket:
        graph = with_schedule(sampled(checkpoint), scheduler, inputs)
        messages = socket.read_job(comfy.submit_ok(graph, client_id=socket.client_id))
    assert "execution_success" in kinds(messages)
    assert data_of(messages, "progress") == []


def test_a_mask_may_have_another_size_than_the_image(comfy: Comfy, checkpoint: str) -> None:
    mask = halves(64)
    ImageDraw.Draw(mask).ellipse((40, 20, 60, 40), fill=(0, 255, 0))
    names = [comfy.upload_to_temp(image) for image in (colourful(64, 64), mask.resize((200, 136)))]
    (drawn,) = comfy.pictures(edited(checkpoint, *names, crop=(64, 64)))
    assert drawn.crop((0, 0, 28, 64)).tobytes() == colourful(64, 64).crop((0, 0, 28, 64)).tobytes()


def test_a_jpeg_upload_is_loaded_under_any_file_name(comfy: Comfy, is_newer: bool) -> None:
    out = io.BytesIO()
    colourful(32, 32).save(out, "JPEG", quality=95)
    stored = comfy.upload(out.getvalue(), type="temp", subfolder="easel")
    (loaded,) = comfy.pictures(loading(f"easel/{stored['name']} [temp]"))
    # Newer engines decode by PyAV, which rounds differently; Easel therefore sends PNG.
    assert largest_difference(loaded, picture_of(out.getvalue())) <= (12 if is_newer else 1)


# --- several images -------------------------------------------------------------------------------------------


def loading_each(comfy: Comfy, images: list[Image.Image]) -> dict[str, Any]:
    """A graph that loads these pictures and saves what its node `all` makes."""
    graph = {
        f"image{index}": {"class_type": "LoadImage", "inputs": {"image": comfy.upload_to_temp(image)}}
        for index, image in enumerate(images, start=1)
    }
    graph["save"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["all", 0], "filename_prefix": "several"},
    }
    return graph


@pytest.mark.parametrize("direction", ["right", "down", "left", "up"])
@pytest.mark.parametrize("spacing", [0, 6])
@pytest.mark.parametrize("colour", ["white", "black", "red"])
def test_stitched_pictures_are_in_order_with_all_their_pixels(
    comfy: Comfy, direction: str, spacing: int, colour: str
) -> None:
    first, second = colourful(40, 24), colourful(16, 30).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    graph = loading_each(comfy, [first, second])
    inputs = {
        "direction": direction,
        "match_image_size": False,
        "spacing_width": spacing,
        "spacing_color": colour,
    }
    graph["all"] = {
        "class_type": "ImageStitch",
        "inputs": {"image1": ["image1", 0], "image2": ["image2", 0], **inputs},
    }
    (stitched,) = comfy.pictures(graph)
    across = direction in ("right", "left")
    before, after = (first, second) if direction in ("right", "down") else (second, first)
    size = (56 + spacing, 30) if across else (40, 54 + spacing)
    expected = Image.new("RGB", size, "white" if colour == "white" else "black")
    gap = (
        (before.width, 0, before.width + spacing, 30)
        if across
        else (0, before.height, 40, before.height + spacing)
    )
    expected.paste(colour, gap)
    for picture, left, top in ((before, 0, 0), (after, size[0] - after.width, size[1] - after.height)):
        at = (left, (30 - picture.height) // 2) if across else ((40 - picture.width) // 2, top)
        expected.paste(picture, at)
    assert stitched.size == size
    assert stitched.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("direction", "size"), [("right", (80, 20)), ("up", (40, 40))])
def test_a_stitched_picture_may_get_the_side_of_the_first(
    comfy: Comfy, direction: str, size: tuple[int, int]
) -> None:
    graph = loading_each(comfy, [Image.new("RGB", (40, 20), RED), Image.new("RGB", (80, 40), BLUE)])
    inputs = {"direction": direction, "match_image_size": True, "spacing_width": 0, "spacing_color": "white"}
    graph["all"] = {
        "class_type": "ImageStitch",
        "inputs": {"image1": ["image1", 0], "image2": ["image2", 0], **inputs},
    }
    (stitched,) = comfy.pictures(graph)
    assert stitched.size == size
    corners = [stitched.getpixel(at) for at in ((2, 2), (size[0] - 3, size[1] - 3))]
    assert corners == ([RED, BLUE] if direction == "right" else [BLUE, RED])


def test_three_pictures_stitched_by_a_chain_are_in_order(comfy: Comfy) -> None:
    colours = [RED, BLUE, (0, 200, 0)]
    graph = loading_each(comfy, [Image.new("RGB", (16, 16), colour) for colour in colours])
    inputs = {"direction": "right", "match_image_size": False, "spacing_width": 0, "spacing_color": "white"}
    pair = {"image1": ["image1", 0], "image2": ["image2", 0], **inputs}
    graph["pair"] = {"class_type": "ImageStitch", "inputs": pair}
    graph["all"] = {
        "class_type": "ImageStitch",
        "inputs": {"image1": ["pair", 0], "image2": ["image3", 0], **inputs},
    }
    (stitched,) = comfy.pictures(graph)
    assert [stitched.getpixel((x, 8)) for x in (8, 24, 40)] == colours


@pytest.mark.parametrize("node", ["ImageBatch", "BatchImagesNode"])
def test_a_batch_has_every_picture_in_the_size_of_the_first(
    comfy: Comfy, object_info: dict[str, Any], node: str
) -> None:
    if node not in object_info:
        pytest.skip(f"this engine has no {node}")
    images = [
        Image.new("RGB", (32, 16), RED),
        Image.new("RGB", (32, 16), BLUE),
        Image.new("RGB", (64, 64), RED),
    ]
    images[2].paste((0, 200, 0), (0, 16, 64, 48))
    graph = loading_each(comfy, images)
    if node == "BatchImagesNode":
        links = {f"images.image{index}": [f"image{index + 1}", 0] for index in range(3)}
        graph["all"] = {"class_type": node, "inputs": links}
    else:
        graph["pair"] = {"class_type": node, "inputs": {"image1": ["image1", 0], "image2": ["image2", 0]}}
        graph["all"] = {"class_type": node, "inputs": {"image1": ["pair", 0], "image2": ["image3", 0]}}
    batch = comfy.pictures(graph)
    assert [picture.size for picture in batch] == [(32, 16)] * 3
    assert [picture.getpixel((16, 8)) for picture in batch] == [RED, BLUE, (0, 200, 0)]
    assert batch[2].getpixel((2, 2)) == (0, 200, 0)  # the centre of the third was cropped
