"""What the application says about a request before its body was received."""

from __future__ import annotations

from typing import Any

import pytest
from werkzeug.test import EnvironBuilder

from api import body_limit
from tests.conftest import MakeApp


def environ(method: str = "POST", path: str = "/v1/images/generations", **headers: str) -> dict[str, Any]:
    fields = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": "1000", **headers}
    return EnvironBuilder(path, method=method, headers=fields).get_environ()


def test_the_limit_is_that_of_the_setting(make_app: MakeApp) -> None:
    assert body_limit(make_app(max_request_mb=2), environ()) == 2_000_000
    assert body_limit(make_app(), environ(path="/v1//images/generations/")) == 128_000_000


@pytest.mark.parametrize(
    "request_environ",
    [
        environ(path="/nope"),
        environ(method="DELETE"),
        environ(Host="evil.example"),
        environ(Origin="https://evil.example"),
        environ(Authorization="Bearer wrong"),
    ],
    ids=["no route", "method", "host", "origin", "key"],
)
def test_a_request_that_is_refused_anyway_needs_no_body(
    make_app: MakeApp, request_environ: dict[str, Any]
) -> None:
    assert body_limit(make_app(api_keys=("right",)), request_environ) is None


def test_the_right_key_makes_the_body_welcome(make_app: MakeApp) -> None:
    app = make_app(api_keys=("right",))
    assert body_limit(app, environ(Authorization="Bearer right")) == 128_000_000


def test_the_question_is_not_an_answer_to_the_client(make_app: MakeApp) -> None:
    app = make_app()
    body_limit(app, environ(path="/health"))
    assert app.test_client().get("/health").status_code == 200
