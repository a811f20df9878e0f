"""Root filesystems of Debian's packages, and programs that run in them: in namespaces of their own, with a network of their
own if they serve, and as process 1 of it, as in a container."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

NEEDED = ("mmdebstrap", "unshare", "nsenter", "ip")
SETTING_UP = "mount --make-rprivate / && mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev"
CHROOT = shutil.which("chroot", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or ""
_SLIM = ("man", "info", "locale", "doc", "groff", "lintian", "linda")
"""What Debian's image `slim` leaves out of /usr/share"""


def missing_programs() -> list[str]:
    """What this machine lacks to make root filesystems."""
    missing = [program for program in NEEDED if shutil.which(program) is None]
    return missing if os.geteuid() == 0 else [*missing, "root"]


def make(suite: str, root: Path, *, is_slim: bool = False) -> None:
    """Install Debian `suite`, the packages that every system has and apt, into `root`."""
    options = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _SLIM] if is_slim else []
    command = ["mmdebstrap", "--variant=minbase", *options, suite, str(root)]
    subprocess.run([*command, *_mirror()], check=True, capture_output=True, timeout=900)


def _mirror() -> list[str]:
    """The mirror that this machine uses."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)"], capture_output=True, text=True, check=True
    )
    sites = [site for site in done.stdout.split() if "security" not in site]
    return sites[:1]


def network_variables(root: Path) -> dict[str, str]:
    """How programs in `root` reach PyPI, if this machine has settings for that."""
    variables = {
        name: os.environ[name]
        for name in (
            "http_proxy",
            "https_proxy",
            "no_proxy",
            "PIP_INDEX_URL",
            "PIP_CERT",
            "PIP_DEFAULT_TIMEOUT",
        )
        if name in os.environ
    }
    if "PIP_CERT" in variables:
        # Not at its own place, where a package of Debian's may write another one.
        shutil.copy(variables["PIP_CERT"], root / "pip-certificates.pem")
        variables["PIP_CERT"] = "/pip-certificates.pem"
    return variables


def run_in(root: Path, command: list[str], environment: Mapping[str, str], timeout_s: float = 900) -> str:
    """Run as root, with this machine's network; what it printed. Raises CalledProcessError."""
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    script = f'{SETTING_UP.format(root=root)} && exec {CHROOT} {root} "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", script, "sh", *command],
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    if done.returncode:
        print(done.stdout)
        done.check_returncode()
    return done.stdout


class Container:
    """A program that runs as process 1 of its own namespaces; made by `running_in`."""

    def __init__(
        self, process: subprocess.Popen[bytes], root: Path, user: str, environment: Mapping[str, str]
    ) -> None:
        self.process = process
        self._root, self._user, self._environment = root, user, environment

    @property
    def main_pid(self) -> int:
        """Its process id outside."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def run(self, command: list[str], timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run another program inside, as `docker exec` does."""
        inside = ["nsenter", f"--target={self.main_pid}", "--mount", "--net", "--pid"]
        return subprocess.run(
            [*inside, CHROOT, f"--userspec={self._user}", str(self._root), *command],
            env=dict(self._environment),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )


@contextlib.contextmanager
def running_in(
    root: Path,
    command: list[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    user: str,
    volumes: Mapping[str, Path],
    is_read_only: bool,
) -> Iterator[Container]:
    """Run `command` as `user` (UID:GID) with no network but its own loopback. `volumes`: folders by their paths inside.

    With `is_read_only` nothing but the volumes and /tmp can be written."""
    steps = [
        "mount --make-rprivate /",
        # A root filesystem of its own, so that it can become read-only.
        f"mount --bind {root} {root}",
        f"mount -t proc proc {root}/proc",
        f"mount -t tmpfs tmpfs {root}/dev",
        *(
            f"touch {root}/dev/{name} && mount --bind /dev/{name} {root}/dev/{name}"
            for name in ("null", "zero", "urandom")
        ),
        f"mount -t tmpfs -o mode=1777 tmpfs {root}/tmp",
        *(f"mount --bind {folder} {root}{path}" for path, folder in volumes.items()),
        "ip link set lo up",
    ]
    if is_read_only:
        steps.append(f"mount -o remount,bind,ro {root}")
    script = " && ".join(steps) + f' && exec {CHROOT} --userspec={user} {root} "$@"'
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "sh",
                "-ec",
                script,
                "sh",
                *command,
            ],
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **environment},
            stdout=file,
            stderr=file,
        )
    container = Container(process, root, user, environment)
    try:
        yield container
    finally:
        if process.poll() is None:
            # Process 1, with which all others inside end; --kill-child is forgotten when the user changes.
            with contextlib.suppress(IndexError, OSError):
                os.kill(container.main_pid, signal.SIGKILL)
            process.kill()
        process.wait(30)


def size_mb(root: Path) -> float:
    """The files of the root filesystem, in 10^6 bytes, added up as Docker does."""
    command = ["du", "--summarize", "--one-file-system", "--apparent-size", "--block-size=1", root]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0]) / 1e6
