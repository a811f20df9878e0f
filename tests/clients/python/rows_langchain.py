"""LangChain's DALL-E tool for Python: it never says in which form it wants the picture, and needs a url."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper
from served import Served, fetched


@pytest.mark.parametrize("n", [1, 2])
def test_28_the_tool_answers_urls_that_can_be_fetched(served: Served, n: int) -> None:
    options: dict[str, Any] = {"model": "sdxl-turbo", "api_key": "unused", "size": "256x256", "n": n}
    tool = DallEAPIWrapper(base_url=f"{served.normal}/v1", **options)
    urls = tool.run("a cat in a hat").split("\n")
    assert len(urls) == n
    assert [fetched(url).size for url in urls] == [(256, 256)] * n
