"""Stored images that a request names instead of sending them: by URL, path or name. They are read from the store, so that
this needs no `images.fetch_urls`; whoever knows a name may see the image."""

from __future__ import annotations

from api.request_images import FetchImage, refuse_image_url
from api.services import Services
from api.stored_names import stored_name
from errors import ImageNotFound


def reads_stored_images(services: Services) -> FetchImage:
    """A FetchImage that reads stored images, and fetches others as the services do. Raises ImageNotFound for one that is not
    stored any more."""

    def read(text: str, param: str) -> bytes:
        name = stored_name(text)
        if name is None:
            return (services.fetch_image or refuse_image_url)(text, param)
        try:
            return services.store.open(name).data
        except ImageNotFound:
            if services.fetch_image is None or "://" not in text:
                raise
            return services.fetch_image(text, param)  # another server of this kind may have it

    return read


def noting_names(fetch: FetchImage, named: list[str]) -> FetchImage:
    """`fetch`, which appends the names of stored images to `named`."""

    def read(text: str, param: str) -> bytes:
        data = fetch(text, param)
        if (name := stored_name(text)) is not None:
            named.append(name)
        return data

    return read
