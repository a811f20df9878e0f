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
    entry: str = field(default="", compare=False)
    """The name of the entry of `engines` that they are for, in texts; empty: they are those of the setting `engine`"""

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
        values = (self.user, self.token, self.query_token)
        used = [place for place, value in zip(self._places, values, strict=True) if value]
        if not used:
            return self.ways_to_give(challenge)
        whose = f" of the engine {self.entry}" if self.entry else ""
        return f"It does not accept the credentials in {' and '.join(used)}{whose}; correct them and start Easel again."

    def ways_to_give(self, challenge: str = "") -> str:
        """How the owner gives credentials; those that the header `WWW-Authenticate` asks for, if it names them."""
        user, token, query_token = self._places
        where = f"for the engine {self.entry} in `engines`" if self.entry else "in Easel's environment"
        wanted = {"basic": user, "bearer": token}.get(challenge.partition(" ")[0].lower())
        if wanted:
            return f"Set {wanted} {where}."
        return f"Set {user} (basic auth), {token} (a bearer token) or {query_token} (a token in the query) {where}."

    @property
    def _places(self) -> tuple[str, str, str]:
        """Where the owner gives user and password, the token and the token in the query."""
        if self.entry:
            return "`user_env` and `password_env`", "`token_env`", "`query_token_env`"
        return USER_VARIABLES, TOKEN_VARIABLE, QUERY_TOKEN_VARIABLE


NO_CREDENTIALS = Credentials()
