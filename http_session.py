"""The HTTP session that all packages use for the servers that the owner configured."""

from __future__ import annotations

from typing import Any

import requests


class DirectSession(requests.Session):
    """A `requests.Session` that connects to the given URL and nothing else.

    It ignores proxies, passwords and certificates in the environment, does not follow redirects and does not request
    compression.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.headers = requests.structures.CaseInsensitiveDict(
            {"User-Agent": "easel", "Accept-Encoding": "identity"}
        )

    def request(self, *args: Any, **options: Any) -> requests.Response:
        """Like `requests.Session.request`, but returns redirects instead of following them."""
        return super().request(*args, **{**options, "allow_redirects": False})
