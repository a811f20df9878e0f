"""HTTP calls to servers that the owner configured: the same rules for every package. A leaf."""

from __future__ import annotations

from typing import Any

import requests


class DirectSession(requests.Session):
    """A `requests.Session` that talks to the given address and to nothing else.

    It takes no proxies, passwords or certificates from the environment, follows no redirects and asks for no
    compression.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.headers = requests.structures.CaseInsensitiveDict(
            {"User-Agent": "easel", "Accept-Encoding": "identity"}
        )

    def request(self, *args: Any, **options: Any) -> requests.Response:
        """As `requests.Session.request`, but redirects are answers like any other."""
        return super().request(*args, **{**options, "allow_redirects": False})
