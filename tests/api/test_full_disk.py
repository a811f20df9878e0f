"""Responses when the disk of the image store is full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

# Files in this process are limited to 1,000 bytes, which causes the same errors as a full disk.
SCRIPT = """
import json, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from app import create_app
client = create_app().test_client()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for response_format in ("url", "b64_json"):
    response = client.post("/v1/images/generations", json={"prompt": "a", "size": "256x256", "response_format": response_format})
    print(json.dumps([response.status_code, response.get_json().get("error"), dict(response.headers)]))
"""


def test_a_full_disk_is_507_leaves_no_partial_files_and_does_not_affect_b64_json(
    tmp_path: Path, sketch_url: str
) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    environment = {**inherited, "EASEL_ENGINE_URL": sketch_url, "EASEL_STATE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180
    )
    url, b64 = (json.loads(line) for line in done.stdout.splitlines())
    assert (url[0], url[1]["code"]) == (507, "image.store_full")
    assert url[2]["x-should-retry"] == "false"
    assert b64[0] == 200
    assert [
        path for path in (tmp_path / "images").iterdir() if path.suffix == ".png" or path.stat().st_size > 999
    ] == []
