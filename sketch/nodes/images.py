"""IMAGE and MASK: loads, makes, repeats, scales, crops and composites them. Compositing is exact to the pixel, as in
ComfyUI: the upper picture where the mask is white, the lower picture where it is black."""

from __future__ import annotations

import math
from dataclasses import replace

from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from sketch.drawing import NOTE_COLOUR, Box, Size, draw_caption
from sketch.nodes.inputs import GraphFault, NodeContext, NodeInputs
from sketch.nodes.values import Caption, Images, Latent, Mask, Token, check_memory, flat

DEFAULT_SIDE = 512
"""Of a picture whose node does not say its size"""
MODEL_FACTOR = 4
"""How often upscaling models enlarge a picture, most of them"""
_UPSCALE_MODEL, _SUBJECT_FINDER = "UPSCALE_MODEL", "BACKGROUND_REMOVAL"
_INVERTS = "Invert"
"""In the names of nodes"""
RESAMPLING = {
    "nearest-exact": Image.Resampling.NEAREST,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def make_image(inputs: NodeInputs, context: NodeContext) -> Images:
    samples: Latent | None = inputs.first_linked(Latent, "LATENT")
    if samples:
        check_memory(samples.size, samples.batch)
        return samples.decoded()
    images: list[Images] = inputs.linked(Images, "IMAGE")
    if images:
        return _from_images(images, inputs)
    mask: Mask | None = inputs.first_linked(Mask, "MASK")
    if mask:
        return Images((mask.image.convert("RGB"),))
    if inputs.image_name() is not None:
        return Images((_open(inputs, context).convert("RGB"),))
    colour = inputs.plain("color", 0)
    colour = colour if isinstance(colour, int) else 0
    size = (inputs.number("width", DEFAULT_SIDE), inputs.number("height", DEFAULT_SIDE))
    return flat(size, inputs.plain("batch_size", 1), (colour >> 16 & 255, colour >> 8 & 255, colour & 255))


def _from_images(images: list[Images], inputs: NodeInputs) -> Images:
    """The inputs of a node show whether it repeats, composites, crops, stitches, batches or scales."""
    first = images[0]
    if inputs.linked(Token, _UPSCALE_MODEL):
        return scale(first, (first.size[0] * MODEL_FACTOR, first.size[1] * MODEL_FACTOR), inputs)
    if inputs.has("alpha") and (mask := inputs.first_linked(Mask, "MASK")):
        return _with_alpha(first, mask)
    if inputs.has("amount"):
        return repeat(first, inputs.plain("amount"))
    if inputs.has("x", "y") and len(images) > 1:
        return _composite(first, images[1], inputs)
    if inputs.has("x", "y"):
        return crop(first, _requested_box(first.size, inputs))
    if inputs.has("direction") and len(images) > 1:
        return _stitch(first, images[1], inputs)
    if len(images) > 1 and inputs.has_only_links():
        return _batch(images)
    return scale(first, new_size(first.size, inputs), inputs)


def _with_alpha(images: Images, mask: Mask) -> Images:
    """As ComfyUI: what is white in the mask becomes transparent."""
    alpha = ImageOps.invert(stretch(mask.image, images.size))
    pictures = tuple(picture.convert("RGB") for picture in images.pictures)
    for picture in pictures:
        picture.putalpha(alpha)
    return Images(pictures, images.caption)


def repeat(images: Images, amount: int) -> Images:
    """The whole batch, `amount` times."""
    check_memory(images.size, len(images.pictures) * amount)
    return replace(images, pictures=images.pictures * amount)


def _batch(images: list[Images]) -> Images:
    """All pictures one after another, in the size of the first: the centre of the others is cropped to its shape."""
    size = images[0].size
    check_memory(size, sum(len(each.pictures) for each in images))
    fitted = (
        each if each.size == size else crop(each, _centre_with_aspect(each.size, size)) for each in images
    )
    pictures = (picture for each in fitted for picture in each.pictures)
    return Images(tuple(picture if picture.size == size else stretch(picture, size) for picture in pictures))


def _stitch(first: Images, second: Images, inputs: NodeInputs) -> Images:
    """The second picture beside the first, with a gap if the node has one; the last picture of a shorter batch is repeated.
    The second gets the height, or width, of the first, or the smaller one is padded at both sides."""
    direction = inputs.plain("direction")
    across = direction in ("right", "left")
    (width, height), (other_width, other_height) = first.size, second.size
    if inputs.plain("match_image_size", True):
        size = (
            (int(height * other_width / other_height), height)
            if across
            else (width, int(width * other_height / other_width))
        )
        second = Images(
            tuple(
                picture.resize((max(1, size[0]), max(1, size[1])), Image.Resampling.LANCZOS)
                for picture in second.pictures
            )
        )
    colour = inputs.plain("spacing_color", "white")
    sides = (second, first) if direction in ("left", "up") else (first, second)
    gap = inputs.plain("spacing_width", 0)
    gap += gap % 2
    number = max(len(first.pictures), len(second.pictures))
    widths, heights = zip(*(side.size for side in sides), strict=True)
    size = (sum(widths) + gap, max(heights)) if across else (max(widths), sum(heights) + gap)
    check_memory(size, number)
    return Images(
        tuple(
            _beside(
                [side.pictures[min(index, len(side.pictures) - 1)] for side in sides], size, across, colour
            )
            for index in range(number)
        )
    )


def _beside(pictures: list[Image.Image], size: Size, across: bool, colour: str) -> Image.Image:
    """Two pictures at the ends of a new one: the gap has the colour, and what a smaller picture leaves is white if that is
    the colour, else black."""
    result = Image.new("RGB", size, "white" if colour == "white" else "black")
    one, other = pictures
    gap = (
        (one.width, 0, size[0] - other.width, size[1])
        if across
        else (0, one.height, size[0], size[1] - other.height)
    )
    result.paste(colour, gap)
    for picture, end in ((one, 0), (other, 1)):
        left, top = (size[0] - picture.width) * end, (size[1] - picture.height) * end
        result.paste(
            picture,
            (left, (size[1] - picture.height) // 2) if across else ((size[0] - picture.width) // 2, top),
        )
    return result


# --- sizes ---


def new_size(size: Size, inputs: NodeInputs) -> Size:
    """The size that a node requests by width and height (0: in proportion), by megapixels or by a factor."""
    width, height = size
    if inputs.has("width", "height"):
        new_width, new_height = inputs.plain("width"), inputs.plain("height")
        if not new_width and not new_height:
            return size
        return (
            new_width or max(1, round(width * new_height / height)),
            new_height or max(1, round(height * new_width / width)),
        )
    factor = inputs.plain("scale_by", inputs.plain("multiplier", 1.0))
    if inputs.has("megapixels"):
        factor = math.sqrt(inputs.plain("megapixels") * 1024 * 1024 / (width * height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def resized(value: Images | Mask, inputs: NodeInputs) -> Images | Mask:
    """Pictures or a mask in the size that the node requests."""
    if isinstance(value, Images):
        return scale(value, new_size(value.size, inputs), inputs)
    return Mask(stretch(value.image, new_size(value.image.size, inputs)))


def scale(images: Images, size: Size, inputs: NodeInputs) -> Images:
    """The pictures in another size, with the method and cropping that the node requests."""
    check_memory(size, len(images.pictures))
    if images.size == size:
        return images
    if inputs.plain("crop") == "center":
        images = crop(images, _centre_with_aspect(images.size, size))
    method = RESAMPLING.get(
        inputs.plain("upscale_method", inputs.plain("scale_method", "")), Image.Resampling.BILINEAR
    )
    pictures = tuple(picture.resize(size, method) for picture in images.pictures)
    return Images(pictures, _scale_caption(images.caption, images.size, size))


def _centre_with_aspect(size: Size, target: Size) -> Box:
    """The largest centred box with the aspect ratio of `target`."""
    (width, height), aspect = size, target[0] / target[1]
    left = max(0, round((width - height * aspect) / 2))
    top = max(0, round((height - width / aspect) / 2))
    return left, top, width - left, height - top


def _scale_caption(caption: Caption | None, size: Size, target: Size) -> Caption | None:
    if caption is None:
        return None

    def scale_box(box: Box) -> Box:
        left, top, right, bottom = box
        return (
            left * target[0] // size[0],
            top * target[1] // size[1],
            right * target[0] // size[0],
            bottom * target[1] // size[1],
        )

    return replace(caption, box=scale_box(caption.box), note=scale_box(caption.note))


# --- cropping ---


def _requested_box(size: Size, inputs: NodeInputs) -> Box:
    """As in ComfyUI: the top left corner is moved inside the picture; the right and bottom edges are cut at it."""
    left, top = min(inputs.plain("x"), size[0] - 1), min(inputs.plain("y"), size[1] - 1)
    right, bottom = left + inputs.plain("width"), top + inputs.plain("height")
    return left, top, min(right, size[0]), min(bottom, size[1])


def centre(size: Size, target: Size) -> Box:
    """The centred box of the size `target`."""
    left, top = (size[0] - target[0]) // 2, (size[1] - target[1]) // 2
    return left, top, left + target[0], top + target[1]


def crop(images: Images, box: Box) -> Images:
    """The part in the box. If that cuts the caption of a sketch, the caption is drawn again in what is left."""
    if box == (0, 0, *images.size):
        return images
    pictures = tuple(picture.crop(box) for picture in images.pictures)
    if images.caption is None:
        return Images(pictures)
    return Images(pictures, _crop_caption(images.caption, box, pictures))


def _crop_caption(caption: Caption, box: Box, pictures: tuple[Image.Image, ...]) -> Caption | None:
    note, caption_box = _intersection(caption.note, box), _intersection(caption.box, box)
    if caption_box is None:
        return None
    if note is None or note != _relative(caption.note, box):
        note = _redraw_caption(caption.lines, caption_box, note, pictures)
    return Caption(caption.lines, caption_box, note)


def _redraw_caption(
    lines: tuple[str, ...], box: Box, old_note: Box | None, pictures: tuple[Image.Image, ...]
) -> Box:
    for picture in pictures:
        if old_note:
            picture.paste(NOTE_COLOUR, old_note)
        note = draw_caption(picture, lines, box)
    return note


def _relative(part: Box, box: Box) -> Box:
    return part[0] - box[0], part[1] - box[1], part[2] - box[0], part[3] - box[1]


def _intersection(part: Box, box: Box) -> Box | None:
    """The intersection, relative to `box`; None if it is empty."""
    left, top, right, bottom = _relative(part, box)
    left, top = max(0, left), max(0, top)
    right, bottom = min(right, box[2] - box[0]), min(bottom, box[3] - box[1])
    return (left, top, right, bottom) if left < right and top < bottom else None


# --- compositing ---


def _composite(lower: Images, upper: Images, inputs: NodeInputs) -> Images:
    """`upper` at (x, y) of `lower`, through the mask if there is one; a shorter batch of `upper` is repeated."""
    if inputs.plain("resize_source"):
        upper = Images(tuple(stretch(picture, lower.size) for picture in upper.pictures))
    mask: Mask | None = inputs.first_linked(Mask, "MASK")
    mask_image = stretch(mask.image, upper.size) if mask else None
    position = (min(inputs.plain("x"), lower.size[0]), min(inputs.plain("y"), lower.size[1]))
    pictures = []
    for index, picture in enumerate(lower.pictures):
        result = picture.copy()
        result.paste(upper.pictures[index % len(upper.pictures)], position, mask_image)
        pictures.append(result)
    return replace(lower, pictures=tuple(pictures))


def stretch(image: Image.Image, size: Size) -> Image.Image:
    """Scaled bilinearly from the nearest four pixels, as ComfyUI scales masks and the upper picture."""
    if image.size == size:
        return image
    return image.transform(size, Image.Transform.EXTENT, (0, 0, *image.size), Image.Resampling.BILINEAR)


# --- MASK ---


def make_mask(inputs: NodeInputs, context: NodeContext) -> Mask:
    if inputs.image_name() is not None:
        image = _open(inputs, context)
        return Mask(_channel(image, inputs.plain("channel")) if inputs.has("channel") else _alpha_mask(image))
    mask: Mask | None = inputs.first_linked(Mask, "MASK")
    images: Images | None = inputs.first_linked(Images, "IMAGE")
    if mask:
        return Mask(ImageOps.invert(mask.image)) if _INVERTS in inputs.class_type else mask
    if images and inputs.linked(Token, _SUBJECT_FINDER):
        return _subject(images.size)
    if images:
        return Mask(_channel(images.pictures[0], inputs.plain("channel", "red")))
    size = (inputs.plain("width", 64), inputs.plain("height", 64))
    check_memory(size, 1)
    return Mask(Image.new("L", size, round(255 * float(inputs.plain("value", 1.0)))))


def _subject(size: Size) -> Mask:
    """Where the subject of a picture usually is: an oval in its middle."""
    image = Image.new("L", size, 0)
    ImageDraw.Draw(image).ellipse((size[0] // 8, size[1] // 8, size[0] * 7 // 8, size[1] * 7 // 8), fill=255)
    return Mask(image)


def _channel(image: Image.Image, name: str) -> Image.Image:
    """One channel as a mask; alpha is inverted, as in ComfyUI: transparent pixels are to be drawn."""
    channel = image.convert("RGBA").getchannel(name[0].upper())
    return ImageOps.invert(channel) if name == "alpha" else channel


def _alpha_mask(image: Image.Image) -> Image.Image:
    """The mask of a loaded picture: its alpha channel, or 64 x 64 black pixels if it has none."""
    if "A" in image.getbands() or (image.mode == "P" and "transparency" in image.info):
        return _channel(image, "alpha")
    return Image.new("L", (64, 64), 0)


def _open(inputs: NodeInputs, context: NodeContext) -> Image.Image:
    path = context.folders.image_path(inputs.image_name())
    try:
        if path is None:
            raise FileNotFoundError(f"[Errno 2] No such file or directory: '{inputs.image_name()}'")
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (FileNotFoundError, IsADirectoryError, UnidentifiedImageError) as error:
        raise GraphFault from error
