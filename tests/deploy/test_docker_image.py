"""The steps of the Dockerfile in a root filesystem of Debian's packages, and what they made: a server that nobody but its own
user runs, with a root filesystem that cannot be written.

Only with EASEL_TEST_INSTALL=1 (`make test-install`), as root, with mmdebstrap and the registries: it takes minutes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.deploy import dockerfile, root_filesystem
from tests.deploy.root_filesystem import Container
from tests.waiting import wait_until

if not os.environ.get("EASEL_TEST_INSTALL"):
    pytest.skip("the Dockerfile's steps are NOT run: set EASEL_TEST_INSTALL=1", allow_module_level=True)
if missing := root_filesystem.missing_programs():
    pytest.skip(f"the Dockerfile's steps are NOT run: no {', '.join(missing)}", allow_module_level=True)

MAX_SIZE_MB = 200
STAGES = dockerfile.read(ROOT / "Dockerfile")
IMAGE = STAGES[-1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    dockerfile.copy_context(ROOT, folder / "context")

    def make_base(image: str, root: Path) -> None:
        suite = image.removeprefix("debian:").removesuffix("-slim")
        began_at = time.monotonic()
        root_filesystem.make(suite, root, is_slim=image.endswith("-slim"))
        print(f"{image}: {time.monotonic() - began_at:.0f} s, {root_filesystem.size_mb(root):.0f} MB")

    def run(root: Path, command: list[str], arguments: dict[str, str]) -> None:
        began_at = time.monotonic()
        root_filesystem.run_in(root, command, {**root_filesystem.network_variables(root), **arguments})
        print(f"{time.monotonic() - began_at:.0f} s: {command[-1][:90]}")

    root = dockerfile.build(STAGES, folder / "context", folder, make_base, run)
    print(f"the image: {root_filesystem.size_mb(root):.0f} MB")
    return root


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The volume, as Docker makes it: its folder belongs to whom the image gave it."""
    state = tmp_path / "state"
    state.mkdir(mode=0o750)
    uid, gid = map(int, IMAGE.last("USER").split(":"))
    os.chown(state, uid, gid)
    # So that this user gets there.
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    return state


@contextlib.contextmanager
def started(root: Path, state: Path, log: Path, *arguments: str) -> Iterator[Container]:
    """The image with its own command, or with other arguments, as `docker run --read-only` starts it."""
    entrypoint, command = (dockerfile.exec_form(IMAGE.last(name)) for name in ("ENTRYPOINT", "CMD"))
    with root_filesystem.running_in(
        root,
        entrypoint + (list(arguments) or command),
        IMAGE.environment(),
        log,
        user=IMAGE.last("USER"),
        volumes={IMAGE.last("VOLUME"): state},
        is_read_only=True,
    ) as container:
        yield container


@pytest.fixture
def key(root: Path, state: Path, tmp_path: Path) -> str:
    """Made before the first start."""
    log = tmp_path / "key"
    with started(root, state, log, "keys", "add", "me") as container:
        assert container.process.wait(120) == 0, log.read_text()
    found = re.search(r"(?m)^easel_\S+$", log.read_text())
    assert found, log.read_text()
    return found[0]


@pytest.fixture
def served(root: Path, state: Path, tmp_path: Path, key: str) -> Iterator[Container]:
    log = tmp_path / "log"
    with started(root, state, log) as container:
        wait_until(lambda: b"Easel is at" in log.read_bytes() or container.process.poll() is not None, 300)
        assert container.process.poll() is None, log.read_text()
        yield container


def is_healthy(container: Container) -> bool:
    health = IMAGE.last("HEALTHCHECK").partition("CMD ")[2]
    return container.run(dockerfile.exec_form(health)).returncode == 0


DRAW = """
import json, sys, urllib.request
body = json.dumps({"prompt": "a cat", "size": "256x256", "response_format": "b64_json"}).encode()
headers = {"Content-Type": "application/json", "Authorization": "Bearer " + sys.argv[1]}
request = urllib.request.Request("http://127.0.0.1:8080/v1/images/generations", body, headers)
answer = json.load(urllib.request.urlopen(request, timeout=100))
print(json.dumps([answer["data"][0]["b64_json"][:12], open("/proc/1/status").read()]))
"""


def test_the_image_draws_as_its_own_user_and_ends_at_sigterm(
    served: Container, state: Path, key: str
) -> None:
    wait_until(lambda: is_healthy(served), 120)
    drawn = served.run(["python3", "-c", DRAW, key])
    assert drawn.returncode == 0, drawn.stderr
    beginning, status = json.loads(drawn.stdout)
    assert beginning == "iVBORw0KGgoA"  # a PNG
    assert "\nUid:\t10001\t10001\t10001\t10001\n" in status
    assert "\nCapEff:\t0000000000000000\n" in status
    refused = served.run(["python3", "-c", "open('/opt/easel/new', 'w')"])
    assert "Read-only file system" in refused.stderr
    # All data is in the volume, and its user's.
    assert {(state / name).stat().st_uid for name in ("keys.json", "images", "format.json")} == {10001}
    began_at = time.monotonic()
    os.kill(served.main_pid, signal.SIGTERM)
    assert served.process.wait(90) == 0
    print(f"it ended {time.monotonic() - began_at:.1f} s after SIGTERM")


def test_a_container_without_keys_does_not_start_and_says_why(
    root: Path, state: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with started(root, state, log) as container:
        assert container.process.wait(120) == 1
    assert "without API keys" in log.read_text()
    assert "easel keys add" in log.read_text()


def test_the_image_is_small(root: Path) -> None:
    assert root_filesystem.size_mb(root) < MAX_SIZE_MB
