"""What clients and commands see of the licence policy."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import MakeApp
from tests.conversation.upstream import upstream

DENIED = {"licences__deny": ("non-commercial",)}
BODY = {"model": "flux-dev", "prompt": "a cat"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/images/generations", BODY),
        ("/v1/images/generations", {**BODY, "model": "black-forest-labs/FLUX.1-dev"}),
        ("/v1-openai/images/generations", BODY),
        (
            "/v1/images/edits",
            {**BODY, "images": [{"image_url": "data:image/png;base64,bm90IGEgcGljdHVyZQ=="}]},
        ),
        ("/v1/chat/completions", {"model": "flux-dev", "messages": [{"role": "user", "content": "a cat"}]}),
        ("/v1/responses", {"model": "flux-dev", "input": "a cat"}),
        (
            "/v1/responses",
            {
                "model": "gpt-5",
                "input": "a cat",
                "tools": [{"type": "image_generation", "model": "flux-dev"}],
                "tool_choice": {"type": "image_generation"},
            },
        ),
    ],
)
def test_a_denied_model_is_refused_on_every_route(make_app: MakeApp, path: str, body: Any) -> None:
    response = make_app(**DENIED).test_client().post(path, json=body)
    error = response.get_json()["error"]
    assert (response.status_code, error["code"]) == (403, "model.licence_not_accepted"), error
    assert "licences.deny has non-commercial" in error["message"]


def test_a_denied_default_model_is_refused_too(make_app: MakeApp) -> None:
    client = make_app(images__default_model="flux-dev", **DENIED).test_client()
    response = client.post("/v1/images/generations", json={"prompt": "a cat"})
    assert response.get_json()["error"]["code"] == "model.licence_not_accepted"


def test_the_model_list_says_which_licences_are_accepted_and_changes_at_once(make_app: MakeApp) -> None:
    app = make_app(licences__accept="required", images__list="all")
    client = app.test_client()

    def listed() -> dict[str, Any]:
        return {entry["id"]: entry for entry in client.get("/v1/models").get_json()["data"]}

    before = listed()["flux-dev"]
    assert (before["licence"]["key"], before["licence"]["state"]) == (
        "flux1-dev-non-commercial",
        "not_accepted",
    )
    assert before["tasks"] == []
    assert "accept-licence flux-dev" in before["not_drawable"]["generate"][0]
    assert listed()["flux-schnell"]["licence"]["state"] == "allowed"
    result = app.test_cli_runner().invoke(args=["accept-licence", "flux-dev", "--yes"])
    assert result.exit_code == 0, result.output
    assert "LICENSE-FLUX1-dev" in result.output
    after = listed()["flux-dev"]
    assert (after["licence"]["state"], after["not_drawable"]) == ("accepted", {})
    assert listed()["flux-krea-dev"]["licence"]["state"] == "accepted"
    assert client.get("/v1/models/flux-dev").get_json()["licence"]["state"] == "accepted"


def test_accept_licence_explains_what_it_cannot_do(make_app: MakeApp) -> None:
    runner = make_app(**DENIED).test_cli_runner()
    for names, text in (
        (["flux-dv"], "did you mean flux-dev?"),
        (["unknown"], "Name the models"),
        (["flux-dev"], "licences.deny has non-commercial"),
    ):
        result = runner.invoke(args=["accept-licence", *names, "--yes"])
        assert (result.exit_code, text in result.output) == (2, True), result.output
    assert runner.invoke(args=["accept-licence", "sdxl-turbo"], input="n\n").exit_code == 2
    assert runner.invoke(args=["accept-licence", "sdxl-turbo"], input="y\n").exit_code == 0


def test_check_catalogue_names_models_that_are_refused(make_app: MakeApp) -> None:
    result = make_app(**DENIED).test_cli_runner().invoke(args=["check-catalogue"])
    refused = result.output.partition("their licences are refused")[2].partition("\n\n")[0]
    (line,) = (line for line in refused.splitlines() if " flux-dev " in line)
    assert "licence denied" in line


def test_a_misspelt_licence_in_the_settings_is_refused(make_app: MakeApp) -> None:
    result = make_app(licences__deny=("flux1-dev",)).test_cli_runner().invoke(args=["check-catalogue"])
    assert result.exit_code == 1
    assert "there is no licence 'flux1-dev'" in result.output


def test_a_denied_model_of_the_image_tool_is_refused_before_the_language_model_is_asked(
    make_app: MakeApp,
) -> None:
    with upstream() as llm:
        client = make_app(llm__upstreams=[{"name": "fake", "url": llm.url}], **DENIED).test_client()
        body = {
            "model": "tiny",
            "input": "Draw.",
            "tools": [{"type": "image_generation", "model": "flux-dev"}],
        }
        answer = client.post("/v1/responses", json=body)
        assert answer.get_json()["error"]["code"] == "model.licence_not_accepted"
        assert llm.posts == []
