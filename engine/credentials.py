"""What a proxy in front of ComfyUI asks for: a user and password, a bearer token, or a token in the query. Sent only to
the engine that the owner named, and never shown."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from urllib.parse import quote_plus

USER_VARIABLES = "EASEL_ENGINE_USER and EASEL_ENGINE_PASSWORD"
TOKEN_VARIABLE = "EASEL_ENGINE_TOKEN"  # noqa: S105  the name of a variable
QUERY_TOKEN_VARIABLE = "EASEL_ENGINE_QUERY_TOKEN"  # noqa: S105  the name of a variable


@dataclass(frozen=True)
class Credentials:
    """At most one of `user` (with `password`) and `token`. `query_token` is the value of the query's parameter
    `query_name`."""

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    query_token: str = field(default="", repr=False)
    query_name: str = "token"

    @property
    def headers(self) -> dict[str, str]:
        if self.user:
            pair = f"{self.user}:{self.password}".encode()
            return {"Authorization": f"Basic {base64.b64encode(pair).decode('ascii')}"}
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def query(self) -> str:
        """Encoded, without `?`; empty without a query token."""
        return f"{quote_plus(self.query_name)}={quote_plus(self.query_token)}" if self.query_token else ""

    def remedy(self, challenge: str) -> str:
        """What to set, given the header `WWW-Authenticate` of a response with status 401 or 403."""
        used = [
            variable
            for variable, value in (
                (USER_VARIABLES, self.user),
                (TOKEN_VARIABLE, self.token),
                (QUERY_TOKEN_VARIABLE, self.query_token),
            )
            if value
        ]
        if used:
            return f"It does not accept the credentials in {' and '.join(used)}; correct them and start Easel again."
        scheme = challenge.partition(" ")[0].lower()
        wanted = {"basic": USER_VARIABLES, "bearer": TOKEN_VARIABLE}.get(scheme)
        if wanted:
            return f"Set {wanted} in Easel's environment."
        return (
            f"Set {USER_VARIABLES} (basic auth), {TOKEN_VARIABLE} (a bearer token) or {QUERY_TOKEN_VARIABLE} (a token "
            "in the query) in Easel's environment."
        )


NO_CREDENTIALS = Credentials()
