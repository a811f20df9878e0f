"""GET /api/events: the pictures that clients draw, change and delete."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask

from tests.api.test_events_api import PATH, Reader
from tests.api.test_gallery_api import draw, name_of
from tests.conftest import MakeApp


@pytest.fixture
def app(make_app: MakeApp) -> Iterator[Flask]:
    app = make_app()
    yield app
    app.extensions["easel"].services.shutdown.has_begun = True


def follow(app: Flask, **headers: str) -> Reader:
    return Reader(
        app.test_client().get(PATH, headers={name.replace("_", "-"): headers[name] for name in headers})
    )


def test_what_becomes_of_a_picture_is_told_as_the_gallery_lists_it(app: Flask) -> None:
    client, reader = app.test_client(), follow(app)
    reader.first("catalogue")
    name = name_of(draw(client, "a lighthouse"))
    added = reader.first("image")
    assert added == {"change": "added", "image": client.get(f"/api/images/{name}").get_json()}
    client.patch(f"/api/images/{name}", json={"favourite": True})
    assert reader.first("image", lambda event: event["change"] == "changed")["image"]["favourite"]
    client.delete(f"/api/images/{name}")
    removed = reader.first("image", lambda event: event["change"] == "removed")
    assert removed["image"] == {"name": name}


def test_who_comes_back_is_told_what_happened_meanwhile(app: Flask) -> None:
    client, reader = app.test_client(), follow(app)
    reader.first("catalogue")
    names = [name_of(draw(client, "first"))]
    reader.first("image")
    seen = next(event.id for event in reader.events if event.name == "image")
    names += [name_of(draw(client, prompt)) for prompt in ("second", "third")]
    again = follow(app, Last_Event_ID=seen)
    again.first("image", lambda event: event["image"]["name"] == names[2])
    assert [event["image"]["name"] for event in again.all("image")] == names[1:]
    assert again.all("resync") == []


def test_who_comes_back_with_the_id_of_a_lost_index_lists_the_images_anew(app: Flask) -> None:
    reader = follow(app, Last_Event_ID="0000-5")
    assert reader.first("resync") == {}
