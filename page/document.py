"""The document at `/`: the frame of the page in the reader's language, which shows before any script has run."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from page.files import FOLDER, File, Files

FIRST_MODULES = (
    *(
        "app.js",
        "api.js",
        "dialogs.js",
        "dom.js",
        "event_history.js",
        "event_reader.js",
        "icons.js",
        "live.js",
    ),
    *("sse.js", "status_line.js", "store.js", "stylesheets.js", "text.js", "toasts.js"),
    *(
        "draw/draw_stream.js",
        "draw/drawing.js",
        "draw/edit_slot.js",
        "draw/error_card.js",
    ),
    *(
        "draw/fields.js",
        "draw/form.js",
        "draw/model_picker.js",
        "draw/models.js",
        "draw/pulls.js",
        "draw/recent.js",
    ),
    *("draw/size_field.js", "draw/sizes.js", "draw/stage.js", "draw/view.js", "edit/dropped.js"),
)
"""Modules of the first view: browsers load them at once instead of one import after another"""


def document(files: Files, version: str, root: str, language: str) -> File:
    """The document. `root`: the path below which a proxy has Easel, without a trailing slash; empty if there is none or it
    is not known."""
    texts = files.texts(language)
    html = _template().render(
        version=version,
        # Paths relative to the document work behind any prefix.
        files=f"{root}/page/{files.version}" if root else f"page/{files.version}",
        language=language,
        modules=FIRST_MODULES,
        t=texts.__getitem__,
    )
    return File(html.encode(), "text/html")


@cache
def _template() -> Template:
    loader = FileSystemLoader(FOLDER / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")
