"""Long lists are compressed for clients that accept it."""

from __future__ import annotations

import gzip
import json

import pytest
from flask.testing import FlaskClient


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models?type=image", "/v1/models/sdxl-turbo"])
def test_a_long_answer_is_compressed_for_a_client_that_accepts_it(client: FlaskClient, path: str) -> None:
    plain = client.get(path)
    sent = client.get(path, headers={"Accept-Encoding": "gzip, deflate, br"})
    assert sent.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in sent.headers["Vary"]
    assert len(sent.data) * 4 < len(plain.data)
    assert json.loads(gzip.decompress(sent.data)) == plain.get_json()


@pytest.mark.parametrize("accepted", [None, "identity", "gzip;q=0", "br"])
def test_others_get_it_as_it_is(client: FlaskClient, accepted: str | None) -> None:
    headers = {} if accepted is None else {"Accept-Encoding": accepted}
    answer = client.get("/v1/models", headers=headers)
    assert "Content-Encoding" not in answer.headers
    assert "Accept-Encoding" in answer.headers["Vary"]
    assert len(answer.get_json()["data"]) > 100


def test_errors_and_short_answers_are_sent_as_they_are(client: FlaskClient) -> None:
    for path in ("/v1/models/none", "/v1/models?limit=1"):
        assert "Content-Encoding" not in client.get(path, headers={"Accept-Encoding": "gzip"}).headers
