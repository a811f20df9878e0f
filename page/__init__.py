"""The web page at `/`: draw, find pictures again, see who has the GPU. It knows Flask and its own files; everything else it
gets in the browser, from the public API."""

from page.blueprint import page_blueprint

__all__ = ["page_blueprint"]
