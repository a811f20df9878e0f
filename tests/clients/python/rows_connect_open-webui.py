"""Open WebUI's server, started with the variables of `easel connect open-webui`, and asked as its page asks it."""

from __future__ import annotations

import io
import os
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from row_support import ANSWER, TIMEOUT_S, free_port, printed_variables, running_program


@dataclass(frozen=True)
class Page:
    """Its first user, who is the administrator"""

    url: str
    token: str

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = requests.request(method, self.url + path, headers=headers, timeout=TIMEOUT_S, **options)
        assert answer.status_code == 200, answer.text
        return answer


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder, port = tmp_path_factory.mktemp("open-webui"), free_port()
    own = {
        "HOME": str(folder),
        "DATA_DIR": str(folder),
        "WEBUI_SECRET_KEY": secrets.token_hex(16),
        # It downloads nothing, and embeds nothing: PyTorch is not installed.
        "OFFLINE_MODE": "True",
        "HF_HUB_OFFLINE": "1",
        "RAG_EMBEDDING_ENGINE": "openai",
    }
    command = [str(Path(sys.executable).with_name("open-webui")), "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, **own, **printed_variables("open-webui")}
    log = folder / "log"
    with running_program(command, health=f"{url}/health", log=log, cwd=folder, env=environment):
        user = {"name": "Test", "email": "test@example.test", "password": secrets.token_hex(16)}
        answer = requests.post(f"{url}/api/v1/auths/signup", json=user, timeout=TIMEOUT_S)
        assert answer.status_code == 200, answer.text
        yield Page(url, answer.json()["token"])


def test_the_printed_variables_list_easels_models(page: Page) -> None:
    models = page.request("GET", "/api/models").json()["data"]
    assert "primary" in {model["id"] for model in models}


def test_the_printed_variables_chat(page: Page) -> None:
    page.request("GET", "/api/models")  # It answers only for models that it has listed.
    body = {"model": "primary", "messages": [{"role": "user", "content": "Hello"}], "stream": False}
    answer = page.request("POST", "/api/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == ANSWER


def test_the_printed_variables_draw(page: Page) -> None:
    drawn = page.request("POST", "/api/v1/images/generations", json={"prompt": "a cat"}).json()
    picture = page.request("GET", drawn[0]["url"])
    assert picture.headers["Content-Type"] == "image/png"
    image = Image.open(io.BytesIO(picture.content))
    image.load()
    assert image.size == (512, 512)
