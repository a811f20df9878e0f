"""LangChain's DALL-E tool for Python: it sends no response_format and requires a url."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper
from row_support import Servers, fetch_picture


@pytest.mark.parametrize("n", [1, 2])
def test_28_the_tool_returns_urls_that_can_be_fetched(servers: Servers, n: int) -> None:
    options: dict[str, Any] = {"model": "sdxl-turbo", "api_key": "unused", "size": "256x256", "n": n}
    tool = DallEAPIWrapper(base_url=f"{servers.normal}/v1", **options)
    urls = tool.run("a cat in a hat").split("\n")
    assert len(urls) == n
    assert [fetch_picture(url).size for url in urls] == [(256, 256)] * n
