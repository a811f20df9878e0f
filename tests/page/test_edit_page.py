"""Editing, as a person does it: images, masks with mouse, finger, pen and keys, extending, comparing, one-click tools."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image, ImageChops, ImageDraw, ImageStat

from tests.page.browser import violations
from tests.page.conftest import OpenPage
from tests.page.test_draw_page import choose_model, finished
from tests.server.running import Server

SIZE = (640, 480)
TAKES_THREE = "qwen-image-edit-2509"
DRAWS_UP_TO_1024 = "sd-1.5-pruned-emaonly"
ROTATED = 6
"""The EXIF orientation of a photo that was taken with the phone upright"""


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "hills.png"
    landscape(SIZE).save(path)
    return path


def landscape(size: tuple[int, int]) -> Image.Image:
    """A picture in which no two parts look the same."""
    across, down = Image.linear_gradient("L").rotate(90).resize(size), Image.linear_gradient("L").resize(size)
    image = Image.merge("RGB", (across, down, ImageChops.difference(across, down)))
    ImageDraw.Draw(image).ellipse((size[0] * 0.7, size[1] * 0.1, size[0] * 0.85, size[1] * 0.3), fill="white")
    return image


# --- what a person does ------------------------------------------------------------------------------


def add(page: Any, *paths: Path) -> None:
    """Pick files with the file chooser, and wait until they are read."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add an image").or_(
            page.get_by_role("button", name="Add another")
        ).click()
    chooser.value.set_files([str(path) for path in paths])
    wait_read(page)


def wait_read(page: Any) -> None:
    page.locator("easel-image-inputs").wait_for()
    page.locator(".image-tile:not(.is-reading), .image-messages li").first.wait_for()
    page.locator(".image-tile.is-reading").first.wait_for(state="detached")


def use(page: Any, mode: str) -> None:
    page.get_by_role("radio", name=mode).check()


def view(page: Any) -> tuple[float, float, float, float]:
    """Left, top, width and height of the image in the mask editor, on the screen."""
    page.locator(".mask-view").evaluate("(element) => element.scrollIntoView({ block: 'center' })")
    box = page.locator(".mask-picture").bounding_box()
    return box["x"], box["y"], box["width"], box["height"]


def at(page: Any, across: float, down: float) -> tuple[float, float]:
    """The point of the screen that is at this share of the image."""
    left, top, width, height = view(page)
    return left + across * width, top + down * height


def paint(page: Any, *points: tuple[float, float]) -> None:
    """A stroke with the mouse through `points`, as shares of the image."""
    places = [at(page, *point) for point in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()


def mask(page: Any) -> Image.Image:
    """What is sent as the mask, one channel: 255 where the picture is drawn anew."""
    text = page.evaluate(
        """async () => {
            const { mask } = await document.querySelector("easel-edit-panel").read();
            if (!mask) return null;
            const reader = new FileReader();
            reader.readAsDataURL(mask);
            await new Promise((resolve) => reader.addEventListener("load", resolve));
            return reader.result.split(",")[1];
        }"""
    )
    assert text is not None, "there is no mask"
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    assert image.mode == "RGBA"
    return ImageChops.invert(image.getchannel("A"))


def images(page: Any) -> list[dict[str, Any]]:
    """The images that are sent: name, width and height."""
    sent: list[dict[str, Any]] = page.evaluate(
        """() => document.querySelector("easel-edit-panel").images.map(
            ({ name, width, height, blob }) => ({ name, width, height, type: blob.type, bytes: blob.size }))"""
    )
    return sent


def draw(page: Any, prompt: str = "a lighthouse") -> Image.Image:
    """Draw, and fetch the picture as the API has it."""
    prompt_box = page.get_by_role("textbox", name="Prompt", exact=True)
    if prompt_box.is_visible():
        prompt_box.fill(prompt)
    page.get_by_role("button", name="Draw", exact=True).click()
    [url] = finished(page)
    return fetched(url)


def fetched(url: str) -> Image.Image:
    return Image.open(io.BytesIO(requests.get(url, timeout=60).content)).convert("RGB")


def difference(one: Image.Image, other: Image.Image, where: Image.Image) -> float:
    """The mean difference of two pictures where `where` is white."""
    return sum(ImageStat.Stat(ImageChops.difference(one, other), where).mean)


# --- masks -------------------------------------------------------------------------------------------


@pytest.mark.essential
def test_only_what_is_painted_is_drawn_anew(
    easel: Server, open_page: OpenPage, size: str, picture: Path
) -> None:
    page = open_page(easel.url, size)
    add(page, picture)
    use(page, "A part")
    paint(page, (0.3, 0.5), (0.6, 0.5), (0.6, 0.7))
    painted = mask(page)
    drawn = draw(page)
    source = Image.open(picture)
    assert painted.size == drawn.size == SIZE
    outside = painted.point([255] + [0] * 255)
    assert difference(source, drawn, outside) == 0
    assert difference(source, drawn, painted.point([0] * 255 + [255])) > 20
    said = page.locator(".mask-status").text_content().split(" %")[0]
    assert float(said) == pytest.approx(100 * share(painted), abs=0.06)


def share(painted: Image.Image) -> float:
    """The share of the picture that is masked."""
    mean: float = ImageStat.Stat(painted).mean[0] / 255
    return mean


def test_a_mask_without_a_stroke_is_not_sent_but_asked_for(
    easel: Server, open_page: OpenPage, picture: Path
) -> None:
    page = open_page(easel.url)
    add(page, picture)
    use(page, "A part")
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a lighthouse")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator(".form-problem").get_by_text("Paint over what is to be drawn anew.").wait_for()


def test_a_mask_survives_resizing_the_window_in_mid_stroke(
    easel: Server, open_page: OpenPage, size: str, picture: Path
) -> None:
    page = open_page(easel.url, size)
    add(page, picture)
    use(page, "A part")
    paint(page, (0.1, 0.1), (0.3, 0.1))
    first = mask(page)
    page.mouse.move(*at(page, 0.2, 0.5))
    page.mouse.down()
    page.mouse.move(*at(page, 0.5, 0.5), steps=8)
    width, height = page.viewport_size.values()
    for wider, higher in ((-40, -200), (60, 100), (0, -50)):
        page.set_viewport_size({"width": width + wider, "height": height + higher})
        page.wait_for_timeout(100)
    page.mouse.move(*at(page, 0.8, 0.5), steps=8)
    page.mouse.up()
    between_sizes = mask(page)
    # To the other layout and back: what is painted so far stays, also in mid-stroke.
    page.mouse.move(*at(page, 0.2, 0.8))
    page.mouse.down()
    page.mouse.move(*at(page, 0.5, 0.8), steps=8)
    for other in (390, 1440, width):
        page.set_viewport_size({"width": other, "height": height})
        page.wait_for_timeout(100)
    page.mouse.up()
    after = mask(page)
    kept = first.point([0] * 255 + [255])
    assert difference(after.convert("RGB"), first.convert("RGB"), kept) == 0
    # Where the pointer went is painted, wherever the image lay at that moment.
    assert between_sizes.getpixel((round(0.79 * SIZE[0]), round(0.5 * SIZE[1]))) == 255
    assert after.getpixel((round(0.4 * SIZE[0]), round(0.8 * SIZE[1]))) == 255


def test_a_mask_survives_another_model_another_mode_and_a_look_into_the_gallery(
    easel: Server, open_page: OpenPage, picture: Path
) -> None:
    page = open_page(easel.url)
    add(page, picture)
    use(page, "A part")
    paint(page, (0.3, 0.3), (0.7, 0.7))
    before = mask(page)
    choose_model(page, DRAWS_UP_TO_1024)
    use(page, "Whole picture")
    use(page, "A part")
    page.get_by_role("link", name="Gallery").click()
    page.wait_for_url("**/#gallery")
    page.get_by_role("link", name="Draw").click()
    page.locator(".mask-view").wait_for()
    assert mask(page).tobytes() == before.tobytes()


def test_a_finger_paints_two_fingers_zoom_and_the_page_stays(
    easel: Server, open_page: OpenPage, picture: Path
) -> None:
    page = open_page(easel.url, "phone")
    add(page, picture)
    use(page, "A part")
    fingers = Touch(page)
    start, end = at(page, 0.3, 0.5), at(page, 0.7, 0.5)
    scrolled = page.evaluate("scrollY")
    fingers.swipe(start, end)
    painted = mask(page)
    assert painted.getpixel((320, 240)) == 255
    # The second finger takes back what the first one had begun.
    fingers.pinch(at(page, 0.5, 0.8), 20, 120)
    assert mask(page).tobytes() == painted.tobytes()
    assert view(page)[2] > 300 * 1.5
    assert page.evaluate("scrollY") == scrolled
    fingers.swipe(at(page, 0.5, 0.8), at(page, 0.5, 0.82))
    assert mask(page).getpixel((320, 384)) == 255


class Touch:
    """Fingers on the screen of `page`."""

    def __init__(self, page: Any) -> None:
        self._session = page.context.new_cdp_session(page)

    def swipe(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self._send("touchStart", start)
        for part in range(1, 11):
            self._send("touchMove", between(start, end, part / 10))
        self._send("touchEnd")

    def pinch(self, middle: tuple[float, float], first: float, last: float) -> None:
        """Two fingers move apart, from `first` to `last` pixels from each other; one is down a little earlier."""

        def places(distance: float) -> tuple[tuple[float, float], tuple[float, float]]:
            return (middle[0] - distance / 2, middle[1]), (middle[0] + distance / 2, middle[1])

        self._send("touchStart", places(first)[0])
        self._send("touchMove", (places(first)[0][0] + 4, middle[1] + 4))
        self._send("touchStart", *places(first))
        for part in range(1, 11):
            self._send("touchMove", *places(first + (last - first) * part / 10))
        self._send("touchEnd", places(last)[1])
        self._send("touchMove", (places(last)[1][0] + 10, middle[1]))
        self._send("touchEnd")

    def _send(self, kind: str, *points: tuple[float, float]) -> None:
        touches = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        self._session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})


def between(start: tuple[float, float], end: tuple[float, float], part: float) -> tuple[float, float]:
    return start[0] + (end[0] - start[0]) * part, start[1] + (end[1] - start[1]) * part


def test_a_pen_paints_wider_the_more_it_presses(
    easel: Server, open_page: OpenPage, size: str, picture: Path
) -> None:
    page = open_page(easel.url, size)
    add(page, picture)
    use(page, "A part")
    session = page.context.new_cdp_session(page)

    def pen(kind: str, place: tuple[float, float], force: float, buttons: int = 1) -> None:
        event = {
            "type": kind,
            "x": place[0],
            "y": place[1],
            "force": force,
            "buttons": buttons,
            "button": "left",
        }
        session.send("Input.dispatchMouseEvent", {**event, "pointerType": "pen", "clickCount": 1})

    start, end = at(page, 0.2, 0.5), at(page, 0.8, 0.5)
    pen("mousePressed", start, 0.05)
    for part in range(1, 21):
        pen("mouseMoved", between(start, end, part / 20), 0.05 + part * 0.045)
    pen("mouseReleased", end, 0, buttons=0)
    painted = mask(page)
    widths = [column_sum(painted, round(across * SIZE[0])) for across in (0.25, 0.4, 0.55, 0.7)]
    assert widths == sorted(widths)
    assert widths[-1] > 1.8 * widths[0]


def column_sum(painted: Image.Image, x: int) -> float:
    """How many pixels of a column are masked."""
    return sum(painted.crop((x, 0, x + 1, painted.height)).tobytes()) / 255


def test_softness_is_alpha_and_a_soft_stroke_that_crosses_itself_does_not_harden(
    easel: Server, open_page: OpenPage, picture: Path
) -> None:
    page = open_page(easel.url)
    add(page, picture)
    use(page, "A part")
    softness = page.get_by_role("slider", name="Softness")
    softness.fill("0")
    paint(page, (0.2, 0.5), (0.8, 0.5))
    hard = mask(page)
    page.get_by_role("button", name="Clear").click()
    softness.fill("100")
    paint(page, (0.2, 0.5), (0.8, 0.5))
    soft = mask(page)
    paint_again = [(0.2, 0.5), (0.8, 0.5), (0.2, 0.5), (0.8, 0.5)]
    page.get_by_role("button", name="Clear").click()
    paint(page, *paint_again)
    assert mask(page).tobytes() == soft.tobytes()
    assert levels_between(soft, 320) > 20
    assert levels_between(hard, 320) <= 4


def levels_between(painted: Image.Image, x: int) -> int:
    """How many pixels of a column are masked in part."""
    return sum(0 < level < 255 for level in painted.crop((x, 0, x + 1, painted.height)).tobytes())


def test_each_step_can_be_undone_and_done_again(
    easel: Server, open_page: OpenPage, size: str, picture: Path
) -> None:
    page = open_page(easel.url, size)
    add(page, picture)
    use(page, "A part")
    steps: list[Callable[[], None]] = [
        lambda: paint(page, (0.2, 0.3), (0.6, 0.3)),
        lambda: page.get_by_role("button", name="Invert").click(),
        lambda: (page.get_by_role("button", name="Eraser").click(), paint(page, (0.1, 0.7), (0.9, 0.7)))[1],
        lambda: page.get_by_role("button", name="Mask everything").click(),
    ]
    states = []
    for step in steps:
        step()
        states.append(mask(page).tobytes())
    assert len(set(states)) == len(states)
    assert states[0] == bytes(255 - level for level in states[1])
    assert set(states[3]) == {255}
    for state in reversed(states[:-1]):
        page.get_by_role("button", name="Undo").click()
        assert mask(page).tobytes() == state
    page.get_by_role("button", name="Undo").click()
    assert page.get_by_role("button", name="Undo").is_disabled()
    assert page.locator(".mask-status").text_content().startswith("Paint over")
    for state in states:
        page.get_by_role("button", name="Redo").click()
        assert mask(page).tobytes() == state


def test_a_rectangle_is_masked_with_the_keyboard_alone(
    easel: Server, open_page: OpenPage, picture: Path
) -> None:
    page = open_page(easel.url)
    add(page, picture)
    use(page, "A part")
    editor = page.get_by_role("application")
    tab_to(page, editor)
    page.keyboard.press("r")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    step_x, step_y = SIZE[0] // 32, SIZE[1] // 32
    assert mask(page).getbbox() == (160 + step_x, 120, 480 + step_x, 360 + step_y)
    heard = page.locator("#live-polite").text_content()
    assert heard == f"Rectangle masked: 320 by {240 + step_y} pixels at {160 + step_x}, 120"
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+Shift+z")
    page.keyboard.press("i")
    assert mask(page).getpixel((0, 0)) == 255


def tab_to(page: Any, element: Any) -> None:
    """Press Tab until `element` has the focus."""
    for _ in range(60):
        if element.evaluate("(element) => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    pytest.fail("Tab does not reach it")


def test_zooming_with_wheel_and_keys_keeps_the_point_under_the_pointer(
    easel: Server, open_page: OpenPage, picture: Path
) -> None:
    page = open_page(easel.url)
    add(page, picture)
    use(page, "A part")
    fitted = view(page)[2]
    page.get_by_role("application").focus()
    x, y = at(page, 0.25, 0.25)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -400)
    page.wait_for_timeout(100)
    assert view(page)[2] > fitted * 2
    assert at(page, 0.25, 0.25) == pytest.approx((x, y), abs=1)
    page.mouse.down()
    page.mouse.up()
    page.keyboard.press("0")
    assert view(page)[2] == pytest.approx(fitted, abs=1)
    assert mask(page).getpixel((160, 120)) == 255


def test_the_mask_editor_can_use_the_whole_window(
    easel: Server, open_page: OpenPage, size: str, picture: Path
) -> None:
    page = open_page(easel.url, size)
    add(page, picture)
    use(page, "A part")
    paint(page, (0.4, 0.4), (0.6, 0.6))
    before, small = mask(page).tobytes(), view(page)[2]
    page.get_by_role("button", name="Use the whole window").click()
    page.wait_for_timeout(200)
    editor = page.locator("easel-mask-editor").bounding_box()
    assert (editor["width"], editor["height"]) == (page.viewport_size["width"], page.viewport_size["height"])
    assert view(page)[2] > small
    page.keyboard.press("Escape")
    page.wait_for_timeout(200)
    assert view(page)[2] == pytest.approx(small, abs=1)
    assert mask(page).tobytes() == before


# --- images ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 megapixels, taken with the phone upright."""
    path = tmp_path_factory.mktemp("photo") / "IMG_0001.jpg"
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    landscape((9000, 6700)).save(path, quality=88, exif=exif.tobytes())
    return path


def test_a_photo_of_60_megapixels_is_scaled_down_upright_and_typing_goes_on(
    easel: Server, open_page: OpenPage, size: str, photo: Path
) -> None:
    page = open_page(easel.url, size)
    page.evaluate(
        """() => {
            window.longest = 0;
            const watch = (list) => list.getEntries().forEach((one) => (longest = Math.max(longest, one.duration)));
            new PerformanceObserver(watch).observe({ entryTypes: ["longtask"] });
        }"""
    )
    add(page, photo)
    [sent] = images(page)
    assert sent["type"] == "image/jpeg"
    assert sent["height"] > sent["width"]
    assert sent["width"] * sent["height"] <= 4096 * 4096
    assert math.isclose(sent["height"] / sent["width"], 9000 / 6700, rel_tol=0.001)
    page.get_by_text(f"scaled down from 6700×9000 to {sent['width']}×{sent['height']}").wait_for()
    # Decoding it takes seconds, so it must not happen here. (A machine that tests in parallel is slower than a phone.)
    assert page.evaluate("longest") < 1000
    use(page, "A part")
    paint(page, (0.3, 0.3), (0.5, 0.5))
    assert mask(page).size == (sent["width"], sent["height"])


BAD_FILES = {
    "photo.heic": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(600),
        "is a HEIC photo, which this browser cannot open",
    ),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing"),
    "notes.png": (b"These are only words.", "is not an image"),
    "empty.png": (b"", "is empty"),
    "cut.png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is damaged"),
    "film.mp4": (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1" + bytes(600), "is a video"),
    "letter.pdf": (b"%PDF-1.7\n", "is a PDF"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_usable_image_is_explained(
    easel: Server, open_page: OpenPage, tmp_path: Path, picture: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(BAD_FILES[name][0])
    page = open_page(easel.url)
    add(page, path)
    messages = page.locator(".image-messages")
    messages.get_by_text(f"{name} {BAD_FILES[name][1]}").wait_for()
    assert images(page) == []
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose an image").click()
    chooser.value.set_files(str(picture))
    page.locator(".image-tile img").wait_for()
    assert [one["name"] for one in images(page)] == [picture.name]
    assert messages.is_hidden()


def test_the_first_frame_of_an_animation_is_used_and_that_is_said(
    easel: Server, open_page: OpenPage, tmp_path: Path
) -> None:
    frames = [Image.new("RGB", (96, 64), colour) for colour in ("red", "green", "blue")]
    for name in ("film.gif", "film.webp", "film.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "still.gif")
    page = open_page(easel.url)
    choose_model(page, TAKES_THREE)
    add(page, *(tmp_path / name for name in ("film.gif", "film.webp", "film.png", "still.gif")))
    assert page.get_by_text("animated; only the first frame is used").count() == 3
    assert [one["name"] for one in images(page)] == ["film.png"] * 3
    assert page.locator(".image-tile.is-unused").count() == 1


def test_images_are_dropped_and_pasted_anywhere_but_text_is_pasted_as_text(
    easel: Server, open_page: OpenPage, size: str, picture: Path
) -> None:
    page = open_page(easel.url, size)
    transfer = page.evaluate_handle(
        """(data) => {
            const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
            return transfer;
        }""",
        base64.b64encode(picture.read_bytes()).decode(),
    )
    paste = """(transfer) => document.activeElement.dispatchEvent(
        new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true }))"""
    page.locator(".stage").dispatch_event("drop", {"dataTransfer": transfer})
    wait_read(page)
    assert [one["name"] for one in images(page)] == ["dropped.png"]
    page.get_by_role("button", name="Remove dropped.png").click()
    assert images(page) == []
    prompt = page.get_by_role("textbox", name="Prompt", exact=True)
    prompt.focus()
    assert page.evaluate(paste, transfer) is False  # the page took it
    page.locator(".image-tile img").wait_for()
    assert len(images(page)) == 1
    # A table program puts a picture of the cells beside their text.
    page.evaluate("(transfer) => transfer.setData('text/plain', 'cells')", transfer)
    assert page.evaluate(paste, transfer) is True  # the browser pastes the text
    assert len(images(page)) == 1


def test_several_images_are_put_in_order_and_those_that_the_model_cannot_take_are_marked(
    easel: Server, open_page: OpenPage, size: str, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        Image.new("RGB", (300, 200), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    page = open_page(easel.url, size)
    choose_model(page, TAKES_THREE)
    add(page, *(tmp_path / f"{number}.png" for number in (1, 2, 3)))
    page.get_by_role("button", name="Move 3.png one place forward").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert [one["name"] for one in images(page)] == ["3.png", "1.png", "2.png"]
    assert page.evaluate("document.activeElement.ariaLabel") == "Move 3.png one place back"
    choose_model(page, DRAWS_UP_TO_1024)
    page.get_by_text("This model takes one image. The others are kept here, but not sent.").wait_for()
    assert [one["name"] for one in images(page)] == ["3.png"]
    assert page.locator(".image-tile.is-unused").count() == 2
    drawn = draw(page)
    assert drawn.size == (384, 256)  # the least that this model draws
    choose_model(page, TAKES_THREE)
    assert [one["name"] for one in images(page)] == ["3.png", "1.png", "2.png"]


def test_a_model_that_only_draws_from_text_says_so(easel: Server, open_page: OpenPage, picture: Path) -> None:
    page = open_page(easel.url)
    add(page, picture)
    choose_model(page, "mage-flow")
    page.locator(".edit-panel").get_by_text(
        "draws from text only. Choose another model, or remove the images."
    ).wait_for()
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a lighthouse")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator(".form-problem").get_by_text("draws from text only").wait_for()


def test_an_image_of_the_gallery_is_picked_and_edited(easel: Server, open_page: OpenPage, size: str) -> None:
    easel.draw(prompt="a boat under a bridge", size="320x256")
    page = open_page(easel.url, size)
    page.get_by_role("button", name="From the gallery").click()
    page.get_by_role("searchbox", name="Search prompts").fill("under a bridge")
    page.get_by_role("dialog").get_by_role("button", name="a boat under a bridge").first.click()
    wait_read(page)
    [sent] = images(page)
    assert (sent["width"], sent["height"]) == (320, 256)
    assert page.evaluate("document.querySelector('easel-edit-panel').images[0].stored") == sent["name"]


def test_a_picture_that_is_to_be_edited_comes_before_the_images_that_are_there(
    easel: Server, open_page: OpenPage, picture: Path
) -> None:
    page = open_page(easel.url)
    draw(page)
    [url] = finished(page)
    add(page, picture)
    actions = page.get_by_role("group", name="What to do with the picture")
    actions.get_by_role("button", name="Edit", exact=True).click()
    page.wait_for_function(
        "(name) => document.querySelector('easel-edit-panel').images[0].stored === name",
        arg=url.rpartition("/")[2],
    )


def test_pressing_draw_twice_while_an_image_is_read_draws_once(
    easel: Server, open_page: OpenPage, picture: Path
) -> None:
    page = open_page(easel.url)
    add(page, picture)
    sent: list[str] = []
    page.context.on(
        "request",
        lambda request: sent.append(request.url) if request.url.endswith("/images/edits") else None,
    )
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a lighthouse")
    page.wait_for_function("() => document.querySelector('.fields [data-name]')")
    page.evaluate(
        "() => { const form = document.querySelector('.draw-form'); form.requestSubmit(); form.requestSubmit(); }"
    )
    finished(page)
    assert len(sent) == 1


def test_an_image_that_is_gone_is_named(easel: Server, open_page: OpenPage) -> None:
    page = open_page(easel.url)
    address = f"{easel.url}/api/images/cache/2b7a3a52-8a28-4a29-9a35-6f4f6fd2f9c1.png"
    transfer = page.evaluate_handle(
        "(address) => { const one = new DataTransfer(); one.setData('text/uri-list', address); return one; }",
        address,
    )
    page.locator(".stage").dispatch_event("drop", {"dataTransfer": transfer})
    page.locator(".image-messages").get_by_text(
        "could not be loaded: it is no longer in the gallery"
    ).wait_for()


def test_markup_in_a_file_name_is_shown_as_text(easel: Server, open_page: OpenPage, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    landscape((64, 64)).save(tmp_path / name, format="PNG")
    (tmp_path / "<script>alert(2)<").write_bytes(b"words")
    page = open_page(easel.url)
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    add(page, tmp_path / name, tmp_path / "<script>alert(2)<")
    page.get_by_role("button", name=f"Remove {name}").wait_for()
    page.locator(".image-messages").get_by_text("<script>alert(2)< is not an image").wait_for()


# --- extending ---------------------------------------------------------------------------------------


@pytest.mark.essential
def test_an_image_is_extended_by_dragging_by_keys_and_by_numbers(
    easel: Server, open_page: OpenPage, size: str, picture: Path
) -> None:
    page = open_page(easel.url, size)
    choose_model(page, DRAWS_UP_TO_1024)
    add(page, picture)
    use(page, "Extend")
    handle = page.get_by_role("slider", name="Right")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 12, y, steps=4)
    page.mouse.up()
    right = int(handle.get_attribute("aria-valuenow"))
    assert right >= 8
    page.get_by_role("slider", name="Top").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.get_by_role("spinbutton", name="Left").fill("40")
    page.keyboard.press("Tab")
    drawn = draw(page)
    assert drawn.size == (SIZE[0] + 40 + right, SIZE[1] + 32)
    inside = drawn.crop((40, 32, 40 + SIZE[0], 32 + SIZE[1]))
    # At its edges the image fades into what is drawn.
    core = Image.new("L", SIZE)
    core.paste(255, (16, 16, SIZE[0] - 16, SIZE[1] - 16))
    assert difference(Image.open(picture), inside, core) == 0


def test_an_extended_image_that_is_too_large_can_be_scaled_down(
    easel: Server, open_page: OpenPage, size: str, picture: Path
) -> None:
    page = open_page(easel.url, size)
    choose_model(page, DRAWS_UP_TO_1024)
    add(page, picture)
    use(page, "Extend")
    page.get_by_role("spinbutton", name="Right").fill("600")
    page.keyboard.press("Tab")
    page.get_by_text("1240 × 480 is too large: this model draws at most 1024 × 1024.").first.wait_for()
    page.get_by_role("button", name="Scale the image down to 528 × 396").click()
    page.get_by_text("The picture will have 1023 × 396 pixels.").wait_for()
    page.get_by_text("scaled down from 640×480 to 528×396").wait_for()
    assert draw(page).size == (1023, 396)


def test_a_ratio_extends_half_to_each_side(
    easel: Server, open_page: OpenPage, size: str, picture: Path
) -> None:
    page = open_page(easel.url, size)
    add(page, picture)
    use(page, "Extend")
    page.get_by_role("group", name="Extend to").get_by_role("button", name="1:1").click()
    sides = {
        name: int(page.get_by_role("spinbutton", name=name).input_value())
        for name in ("Left", "Right", "Top", "Bottom")
    }
    assert sides == {"Left": 0, "Right": 0, "Top": 80, "Bottom": 80}
    page.get_by_role("button", name="Reset").click()
    assert page.get_by_role("spinbutton", name="Top").input_value() == "0"


# --- results -----------------------------------------------------------------------------------------


def test_before_and_after_are_compared_at_the_same_scale_with_pointer_and_keys(
    easel: Server, open_page: OpenPage, size: str, picture: Path
) -> None:
    page = open_page(easel.url, size)
    choose_model(page, DRAWS_UP_TO_1024)
    add(page, picture)
    use(page, "Extend")
    page.get_by_role("spinbutton", name="Left").fill("160")
    page.keyboard.press("Tab")
    draw(page)
    page.get_by_role("button", name="Compare").click()
    line = page.get_by_role("slider", name="Compare before and after")
    line.wait_for()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.compare img')].every((image) => image.complete && image.naturalWidth)"
    )
    before, after = (page.locator(f".compare-{name}").bounding_box() for name in ("before", "after"))
    assert before["width"] / SIZE[0] == pytest.approx(after["width"] / (SIZE[0] + 160), rel=0.01)
    assert before["x"] - after["x"] == pytest.approx(after["width"] * 160 / (SIZE[0] + 160), abs=2)
    assert line.evaluate("(element) => element === document.activeElement")
    assert line.get_attribute("aria-valuenow") == "50"
    page.keyboard.press("ArrowRight")
    assert line.get_attribute("aria-valuenow") == "52"
    page.keyboard.press("Home")
    assert line.get_attribute("aria-valuetext") == "0 % before"
    page.mouse.click(after["x"] + after["width"] * 0.75, after["y"] + after["height"] / 2)
    assert line.get_attribute("aria-valuenow") == "75"
    page.keyboard.press("Escape")
    assert page.locator(".compare").count() == 0


def test_a_result_is_enlarged_freed_of_its_background_and_varied_by_one_click(
    easel: Server, open_page: OpenPage, picture: Path
) -> None:
    page = open_page(easel.url)
    choose_model(page, DRAWS_UP_TO_1024)
    add(page, picture)
    drawn = draw(page)
    [first] = finished(page)
    page.get_by_role("button", name="Vary").click()
    varied = fetched(next_picture(page, first))
    assert varied.size == drawn.size
    assert varied.tobytes() != drawn.tobytes()
    [second] = finished(page)
    page.get_by_role("button", name="Remove background").click()
    cut = next_picture(page, second)
    assert Image.open(io.BytesIO(requests.get(cut, timeout=60).content)).mode == "RGBA"
    page.get_by_role("button", name="Enlarge").click()
    assert fetched(next_picture(page, cut)).width == 4 * SIZE[0]


def next_picture(page: Any, before: str) -> str:
    """The URL of the picture that takes the place of `before`."""
    page.wait_for_function(
        """(before) => {
            const image = document.querySelector(".picture-open img");
            return image?.naturalWidth && image.src !== before;
        }""",
        arg=before,
    )
    [url] = finished(page)
    return url


def test_how_much_is_redrawn_is_sent_for_models_that_declare_it(
    easel: Server, open_page: OpenPage, picture: Path
) -> None:
    page = open_page(easel.url)
    choose_model(page, DRAWS_UP_TO_1024)
    add(page, picture)
    page.locator('[data-name="strength"] input[type="number"]').fill("0.3")
    little = draw(page)
    page.locator('[data-name="strength"] input[type="number"]').fill("1")
    [first] = finished(page)
    page.get_by_role("button", name="Draw", exact=True).click()
    much = fetched(next_picture(page, first))
    whole = Image.new("L", SIZE, 255)
    source = Image.open(picture)
    assert difference(source, little, whole) < difference(source, much, whole)


# --- for everyone ------------------------------------------------------------------------------------


@pytest.fixture
def opened(easel: Server, open_page: OpenPage, size: str, picture: Path) -> Any:
    page = open_page(easel.url, size)
    choose_model(page, TAKES_THREE)
    add(page, picture, picture)
    return page


@pytest.mark.parametrize("part", ["A part", "Extend", "picker"])
def test_axe_finds_nothing_wrong_with_the_tools(opened: Any, axe: str, part: str) -> None:
    if part == "picker":
        opened.get_by_role("button", name="From the gallery").click()
        opened.get_by_role("dialog").wait_for()
    else:
        use(opened, part)
    assert violations(opened, axe) == []


def test_the_tools_speak_german(easel: Server, open_page: OpenPage, picture: Path) -> None:
    page = open_page(easel.url, locale="de-DE")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Bild hinzufügen").click()
    chooser.value.set_files(str(picture))
    wait_read(page)
    use(page, "Einen Teil")
    paint(page, (0.3, 0.3), (0.5, 0.5))
    assert "des Bildes werden neu gezeichnet" in page.locator(".mask-status").text_content()
