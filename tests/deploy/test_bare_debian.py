"""From nothing to a picture on a machine that has only Debian: the commands of docs/installation.md in fresh root filesystems.

Only with EASEL_TEST_INSTALL=1 (`make test-install`), as root, with mmdebstrap and the registries: it takes minutes."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.deploy import dockerfile, root_filesystem
from tests.waiting import wait_until

if not os.environ.get("EASEL_TEST_INSTALL"):
    pytest.skip("nothing is installed on bare Debian: set EASEL_TEST_INSTALL=1", allow_module_level=True)
if missing := root_filesystem.missing_programs():
    pytest.skip(f"nothing is installed on bare Debian: no {', '.join(missing)}", allow_module_level=True)

SUITES = {"bookworm": "Debian 12, Python 3.11", "trixie": "Debian 13, Python 3.13"}
ENVIRONMENT = {"HOME": "/root", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
DRAW = """
import json, urllib.request
body = json.dumps({"prompt": "a cat", "size": "256x256", "response_format": "b64_json"}).encode()
request = urllib.request.Request(
    "http://127.0.0.1:8080/v1/images/generations", body, {"Content-Type": "application/json"}
)
print(json.load(urllib.request.urlopen(request, timeout=100))["data"][0]["b64_json"][:12])
"""


def documented(heading: str) -> list[str]:
    """The commands of the first block below a heading of docs/installation.md."""
    text = (ROOT / "docs/installation.md").read_text().partition(f"## {heading}\n")[2]
    block = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert block, heading
    return [line.partition("  #")[0].strip() for line in block[1].splitlines()]


@pytest.mark.parametrize("suite", SUITES)
def test_two_commands_lead_from_bare_debian_to_a_picture(suite: str, tmp_path: Path) -> None:
    root = tmp_path / suite
    root_filesystem.make(suite, root)
    root.chmod(0o755)
    dockerfile.copy_context(ROOT, root / "easel")
    variables = {**ENVIRONMENT, **root_filesystem.network_variables(root)}
    # As after the installation of Debian.
    root_filesystem.run_in(root, ["apt-get", "update"], variables)
    install, run = documented("Debian and Ubuntu")
    assert install.startswith("sudo ")
    began_at = time.monotonic()
    script = f"cd /easel && {install.replace('sudo ', '')}"
    root_filesystem.run_in(root, ["sh", "-ec", script], {**variables, "DEBIAN_FRONTEND": "noninteractive"})
    installed_s = time.monotonic() - began_at
    log = tmp_path / "log"
    began_at = time.monotonic()
    with root_filesystem.running_in(
        root, ["sh", "-c", f"exec {run}"], ENVIRONMENT, log, user="0:0", volumes={}, is_read_only=False
    ) as container:
        wait_until(lambda: b"Easel is at" in log.read_bytes() or container.process.poll() is not None, 300)
        assert container.process.poll() is None, log.read_text()
        drawn = container.run(["python3", "-c", DRAW])
        assert drawn.stdout.strip() == "iVBORw0KGgoA", drawn.stderr  # a PNG
        drawn_s = time.monotonic() - began_at
        os.kill(container.main_pid, signal.SIGTERM)
        assert container.process.wait(90) == 0
    size_mb = root_filesystem.size_mb(root)
    print(
        f"{SUITES[suite]}: installed in {installed_s:.0f} s, picture after {drawn_s:.1f} s, {size_mb:.0f} MB in all"
    )


@pytest.mark.parametrize("suite", SUITES)
def test_the_pinned_packages_are_there_with_their_hashes(suite: str, tmp_path: Path) -> None:
    root = tmp_path / suite
    root_filesystem.make(suite, root)
    dockerfile.copy_context(ROOT, root / "easel")
    variables = {
        **ENVIRONMENT,
        **root_filesystem.network_variables(root),
        "DEBIAN_FRONTEND": "noninteractive",
    }
    for command in (
        "apt-get update && apt-get install -y --no-install-recommends python3-venv",
        "python3 -m venv /opt/easel",
        # Nothing is compiled: a machine need not have a compiler.
        "/opt/easel/bin/pip install --only-binary :all: --require-hashes -r /easel/requirements.txt",
        "/opt/easel/bin/pip install --only-binary :all: --require-hashes -r /easel/requirements-otel.txt",
        "/opt/easel/bin/pip install --no-deps /easel",
        "/opt/easel/bin/pip check",
        "/opt/easel/bin/easel --version",
    ):
        root_filesystem.run_in(root, ["sh", "-ec", command], variables)
