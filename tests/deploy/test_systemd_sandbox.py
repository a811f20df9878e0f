"""Easel below the system calls and the memory protection that its units allow.

Only with EASEL_TEST_INSTALL=1 (`make test-install`) on Linux 6.3 or newer, with Debian's package python3-seccomp."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.conftest import ROOT
from tests.server.running import Server
from tests.waiting import wait_until

PYTHON = "/usr/bin/python3"

if not os.environ.get("EASEL_TEST_INSTALL"):
    pytest.skip("the units' sandbox is NOT tried: set EASEL_TEST_INSTALL=1", allow_module_level=True)
if subprocess.run([PYTHON, "-c", "import seccomp"], capture_output=True).returncode:
    pytest.skip("the units' sandbox is NOT tried: no python3-seccomp", allow_module_level=True)


def sandboxed(unit: str, *command: str) -> list[str]:
    return [PYTHON, str(ROOT / "tests/deploy/sandbox.py"), str(ROOT / "deploy/systemd" / unit), *command]


def test_the_sandbox_refuses_what_the_unit_does_not_allow() -> None:
    # chroot is one of @mount's calls; a mapping that is writable and executable is what a compiler at run time needs.
    for code, refusal in (
        ("import os; os.chroot('/')", "PermissionError"),
        ("import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)", "PermissionError"),
    ):
        done = subprocess.run(sandboxed("easel.service", PYTHON, "-c", code), capture_output=True, text=True)
        assert refusal in done.stderr


@pytest.mark.parametrize("unit", ["easel.service", "user/easel.service"])
def test_easel_draws_in_the_sandbox_of_its_unit(unit: str, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    process = subprocess.Popen(
        sandboxed(unit, sys.executable, "-m", "easel", "run"),
        cwd=ROOT,
        env={**kept, "EASEL_STATE_DIR": str(tmp_path / "state"), "EASEL_PORT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = Server(process)
    try:
        server.url = server.wait_for(r"Easel is at (\S+)")[1]
        assert "\nSeccomp:\t2\n" in Path(f"/proc/{process.pid}/status").read_text()
        wait_until(lambda: server.draw().status_code == 200)
        for path in ("/api/images", "/ready", "/metrics", "/openapi.json"):
            assert requests.get(server.url + path, timeout=60).status_code == 200, path
    finally:
        server.stop()
    assert process.returncode == 0
