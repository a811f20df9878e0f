"""The fixture that all rows use."""

from __future__ import annotations

import pytest
from row_support import Servers


@pytest.fixture(scope="session")
def servers() -> Servers:
    """The servers that `python -m tests.clients` started."""
    return Servers.from_environment()
