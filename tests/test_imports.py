"""What a server imports before it forks: each worker has it in memory, whether it is used or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

PROGRAM = """
import sys
import server.hooks, server.worker
from wsgi import app
app.extensions["easel"].catalogue()
print(*sys.modules)
"""


def imported(folder: Path, settings: str = "") -> set[str]:
    """The modules of a server with these settings, once it has read the catalogue."""
    (folder / "easel.yaml").write_text(settings)
    own = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    environment = {
        **own,
        "EASEL_CONFIG": str(folder / "easel.yaml"),
        "EASEL_STATE_DIR": str(folder / "state"),
    }
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_a_server_without_llm_servers_imports_nothing_large_that_it_may_never_use(tmp_path: Path) -> None:
    assert (
        imported(tmp_path)
        & {"requests", "charset_normalizer", "urllib3", "pynvml", "aiohttp", "asyncio", "importer"}
        == set()
    )


def test_a_server_with_llm_servers_imports_what_it_calls_them_with_before_it_forks(tmp_path: Path) -> None:
    stacks = "llm:\n  stacks:\n    - driver: ollama\n      url: http://127.0.0.1:9\n"
    assert "requests" in imported(tmp_path, stacks)
