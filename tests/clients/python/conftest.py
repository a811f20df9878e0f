"""What every row may ask for."""

from __future__ import annotations

import pytest
from served import Served


@pytest.fixture(scope="session")
def served() -> Served:
    """The servers that `python -m tests.clients` has started."""
    return Served.from_environment()
