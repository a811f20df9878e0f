"""IMAGE and MASK: loaded, made, repeated, scaled, cut out, and laid one upon another. Two rules of ComfyUI hold to the
pixel: where a mask is white the upper picture is exactly what it was, where it is black the lower one is."""

from __future__ import annotations

import math
from dataclasses import replace

from PIL import Image, ImageOps

from sketch.drawing import NOTE, Box, Size, caption
from sketch.nodes.inputs import NodeContext, NodeInputs
from sketch.nodes.values import Images, Latent, Mark, Mask, check_memory, flat

RESAMPLING = {
    "nearest-exact": Image.Resampling.NEAREST,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def make_image(given: NodeInputs, stage: NodeContext) -> Images:
    samples: Latent | None = given.one(Latent, "LATENT")
    if samples:
        check_memory(samples.size, samples.batch)
        return samples.shown()
    images: list[Images] = given.all(Images, "IMAGE")
    if images:
        return _made_of(images, given)
    mask: Mask | None = given.one(Mask, "MASK")
    if mask:
        return Images((mask.image.convert("RGB"),))
    if given.upload() is not None:
        return Images((_opened(given, stage).convert("RGB"),))
    colour = int(given.plain("color", 0))
    size = (given.plain("width"), given.plain("height"))
    return flat(size, given.plain("batch_size", 1), (colour >> 16 & 255, colour >> 8 & 255, colour & 255))


def _made_of(images: list[Images], given: NodeInputs) -> Images:
    """Whether a node repeats, composes, cuts or scales shows in the inputs it has."""
    first = images[0]
    if given.asks("amount"):
        return repeated(first, given.plain("amount"))
    if given.asks("x", "y") and len(images) > 1:
        return _composed(first, images[1], given)
    if given.asks("x", "y"):
        return cropped(first, _asked_box(first.size, given))
    return scaled(first, new_size(first.size, given), given)


def repeated(images: Images, amount: int) -> Images:
    """The whole batch `amount` times over."""
    check_memory(images.size, len(images.pictures) * amount)
    return replace(images, pictures=images.pictures * amount)


# --- sizes ---


def new_size(size: Size, given: NodeInputs) -> Size:
    """The size that a node asks for by width and height (0: in proportion), by megapixels or by a factor."""
    wide, high = size
    if given.asks("width", "height"):
        to_wide, to_high = given.plain("width"), given.plain("height")
        if not to_wide and not to_high:
            return size
        return (
            to_wide or max(1, round(wide * to_high / high)),
            to_high or max(1, round(high * to_wide / wide)),
        )
    factor = given.plain("scale_by", 1.0)
    if given.asks("megapixels"):
        factor = math.sqrt(given.plain("megapixels") * 1024 * 1024 / (wide * high))
    return max(1, round(wide * factor)), max(1, round(high * factor))


def scaled(images: Images, size: Size, given: NodeInputs) -> Images:
    """The pictures in another size, by the method and the cropping that the node asks for."""
    check_memory(size, len(images.pictures))
    if images.size == size:
        return images
    if given.plain("crop") == "center":
        images = cropped(images, _middle_of_aspect(images.size, size))
    method = RESAMPLING.get(given.plain("upscale_method", ""), Image.Resampling.BILINEAR)
    pictures = tuple(picture.resize(size, method) for picture in images.pictures)
    return Images(pictures, _mark_scaled(images.mark, images.size, size))


def _middle_of_aspect(size: Size, wanted: Size) -> Box:
    """The largest middle part of the wanted proportions."""
    (wide, high), aspect = size, wanted[0] / wanted[1]
    aside = max(0, round((wide - high * aspect) / 2))
    down = max(0, round((high - wide / aspect) / 2))
    return aside, down, wide - aside, high - down


def _mark_scaled(mark: Mark | None, size: Size, wanted: Size) -> Mark | None:
    if mark is None:
        return None

    def moved(box: Box) -> Box:
        left, top, right, bottom = box
        return (
            left * wanted[0] // size[0],
            top * wanted[1] // size[1],
            right * wanted[0] // size[0],
            bottom * wanted[1] // size[1],
        )

    return replace(mark, box=moved(mark.box), note=moved(mark.note))


# --- cutting out ---


def _asked_box(size: Size, given: NodeInputs) -> Box:
    """As in ComfyUI: a corner outside moves in, an edge outside ends where the picture does."""
    left, top = min(given.plain("x"), size[0] - 1), min(given.plain("y"), size[1] - 1)
    right, bottom = left + given.plain("width"), top + given.plain("height")
    return left, top, min(right, size[0]), min(bottom, size[1])


def middle(size: Size, wanted: Size) -> Box:
    """The middle part of this size."""
    left, top = (size[0] - wanted[0]) // 2, (size[1] - wanted[1]) // 2
    return left, top, left + wanted[0], top + wanted[1]


def cropped(images: Images, box: Box) -> Images:
    """What lies in the box. Where that cuts the caption of a sketch, it is written again on what is left of it."""
    if box == (0, 0, *images.size):
        return images
    pictures = tuple(picture.crop(box) for picture in images.pictures)
    if images.mark is None:
        return Images(pictures)
    return Images(pictures, _mark_kept(images.mark, box, pictures))


def _mark_kept(mark: Mark, box: Box, pictures: tuple[Image.Image, ...]) -> Mark | None:
    note, room = _within(mark.note, box), _within(mark.box, box)
    if room is None:
        return None
    if note is None or note != _shifted(mark.note, box):
        note = _written_again(mark.lines, room, note, pictures)
    return Mark(mark.lines, room, note)


def _written_again(
    lines: tuple[str, ...], room: Box, remains: Box | None, pictures: tuple[Image.Image, ...]
) -> Box:
    for picture in pictures:
        if remains:
            picture.paste(NOTE, remains)
        note = caption(picture, lines, room)
    return note


def _shifted(part: Box, box: Box) -> Box:
    return part[0] - box[0], part[1] - box[1], part[2] - box[0], part[3] - box[1]


def _within(part: Box, box: Box) -> Box | None:
    """What of `part` lies in `box`, seen from there; None where that is nothing."""
    left, top, right, bottom = _shifted(part, box)
    left, top = max(0, left), max(0, top)
    right, bottom = min(right, box[2] - box[0]), min(bottom, box[3] - box[1])
    return (left, top, right, bottom) if left < right and top < bottom else None


# --- laying one upon another ---


def _composed(under: Images, over: Images, given: NodeInputs) -> Images:
    """`over` at (x, y) of `under`, through the mask if there is one; a short batch of `over` begins again."""
    if given.plain("resize_source"):
        over = Images(tuple(stretched(picture, under.size) for picture in over.pictures))
    mask: Mask | None = given.one(Mask, "MASK")
    veil = stretched(mask.image, over.size) if mask else None
    at = (min(given.plain("x"), under.size[0]), min(given.plain("y"), under.size[1]))
    pictures = []
    for index, picture in enumerate(under.pictures):
        laid = picture.copy()
        laid.paste(over.pictures[index % len(over.pictures)], at, veil)
        pictures.append(laid)
    return replace(under, pictures=tuple(pictures))


def stretched(image: Image.Image, size: Size) -> Image.Image:
    """In another size, each pixel mixed of the nearest four: ComfyUI's way with masks and with what is laid on."""
    if image.size == size:
        return image
    return image.transform(size, Image.Transform.EXTENT, (0, 0, *image.size), Image.Resampling.BILINEAR)


# --- MASK ---


def make_mask(given: NodeInputs, stage: NodeContext) -> Mask:
    if given.upload() is not None:
        image = _opened(given, stage)
        return Mask(_channel(image, given.plain("channel")) if given.asks("channel") else _transparent(image))
    mask: Mask | None = given.one(Mask, "MASK")
    images: Images | None = given.one(Images, "IMAGE")
    if mask:
        return mask
    if images:
        return Mask(_channel(images.pictures[0], given.plain("channel", "red")))
    size = (given.plain("width", 64), given.plain("height", 64))
    check_memory(size, 1)
    return Mask(Image.new("L", size, round(255 * float(given.plain("value", 1.0)))))


def _channel(image: Image.Image, name: str) -> Image.Image:
    """One channel as a mask; of alpha the opposite, as in ComfyUI: what is transparent is to be drawn."""
    channel = image.convert("RGBA").getchannel(name[0].upper())
    return ImageOps.invert(channel) if name == "alpha" else channel


def _transparent(image: Image.Image) -> Image.Image:
    """The mask that comes with a loaded picture: small and black where the picture has no alpha of its own."""
    if "A" in image.getbands() or (image.mode == "P" and "transparency" in image.info):
        return _channel(image, "alpha")
    return Image.new("L", (64, 64), 0)


def _opened(given: NodeInputs, stage: NodeContext) -> Image.Image:
    place = stage.folders.uploaded(given.upload())
    if place is None:
        raise FileNotFoundError(f"[Errno 2] No such file or directory: '{given.upload()}'")
    with Image.open(place) as image:
        return ImageOps.exif_transpose(image)
