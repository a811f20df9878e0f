"""A file arrives complete and checked, or not at all, whatever its server does."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from errors import DownloadFailed, DownloadForbidden, EaselError, ModelDiskFull, ModelPathUnsafe, WrongFile
from model_files.folders import ModelFolders
from model_files.http_source import HttpOptions
from model_files.plan import plan_pull
from model_files.pull import Pull
from model_files.pull_store import StoredFile
from model_files.stop_signal import Cancelled
from tests.conftest import ROOT
from tests.model_files.hostile_server import (
    Behaviour,
    Content,
    HostileServer,
    chunked,
    drop_after,
    hostile_server,
    ignore_ranges,
    lie_about_size,
    redirect_to,
    stall_after,
    status,
    trickle,
    wrong_range,
)
from tests.waiting import wait_until

SIZE = 3_000_000
QUICK = HttpOptions(stall_timeout_s=0.3, first_delay_s=0.01, longest_delay_s=0.05, attempts=4)


@dataclass
class Model:
    """A model with these files"""

    id: str
    files: dict[str, StoredFile] = field(default_factory=dict)
    licence: Any = None


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with hostile_server() as server:
        yield server


@pytest.fixture
def folders(tmp_path: Path) -> ModelFolders:
    (tmp_path / "models").mkdir()
    return ModelFolders(tmp_path / "models")


def weights(url: str | None, size: int | None = SIZE, sha256: str | None = "", **more: Any) -> StoredFile:
    """A file; `sha256` empty: the right hash"""
    known = Content(SIZE).sha256 if sha256 == "" else sha256
    options = {"name": "a.safetensors", "folder": "checkpoints", "gated": False, **more}
    return StoredFile(url=url, size=size, sha256=known, **options)


def pull(folders: ModelFolders, *files: StoredFile, options: HttpOptions = QUICK) -> Pull:
    """Pull the files of one model. Raises what Pull.run raises."""
    model = Model("m", {str(index): file for index, file in enumerate(files)})
    run = Pull(plan_pull([model], folders), folders, options)
    run.run()
    return run


def listed(folders: ModelFolders) -> list[str]:
    return sorted(
        str(path.relative_to(folders.models_dir)) for path in folders.models_dir.rglob("*") if path.is_file()
    )


def assert_is_there(folders: ModelFolders) -> None:
    assert listed(folders) == ["checkpoints/a.safetensors"]
    path = folders.models_dir / "checkpoints/a.safetensors"
    assert path.read_bytes() == b"".join(Content(SIZE).blocks())


@pytest.mark.parametrize(
    "behaviours",
    [
        [],
        [drop_after(0)],
        [drop_after(1_000_000), drop_after(1_000_001), drop_after(5)],
        [stall_after(1_000_000)],
        [trickle],
        [drop_after(1_000_000), ignore_ranges],
        [drop_after(2_000_000), wrong_range],
        [drop_after(2_000_000), status(416, Content_Range="bytes */1000")],
        [drop_after(2_000_000), status(416)],
        [status(503), status(429, Retry_After=0), status(500)],
        [status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")],
        [chunked()],
        [chunked(1_000_000)],
    ],
    ids=lambda behaviours: f"{len(behaviours)}",
)
def test_a_file_arrives_complete_in_spite_of(
    behaviours: list[Behaviour], server: HostileServer, folders: ModelFolders
) -> None:
    pull(folders, weights(server.add("f", SIZE, *behaviours)))
    assert_is_there(folders)


@pytest.mark.parametrize(
    ("always", "expected"),
    [
        (drop_after(10), DownloadFailed),
        (drop_after(1_000_000), None),
        (stall_after(0), DownloadFailed),
        (status(503), DownloadFailed),
        (status(404), DownloadFailed),
        (status(401), DownloadForbidden),
        (status(429, Retry_After=100_000), DownloadFailed),
        (status(206, Content_Range="bytes 0-9/10"), DownloadFailed),
        (lie_about_size(SIZE + 5), WrongFile),
        (lie_about_size(SIZE - 5), WrongFile),
        (chunked(SIZE - 5), DownloadFailed),
        (redirect_to("/f"), DownloadFailed),
        (redirect_to("http://192.0.2.1/f"), DownloadFailed),
        (redirect_to("file:///etc/passwd"), DownloadFailed),
        (redirect_to("http://[/"), DownloadFailed),
    ],
)
def test_a_server_that_never_sends_the_file_leaves_nothing_in_its_place(
    always: Behaviour, expected: type[EaselError] | None, server: HostileServer, folders: ModelFolders
) -> None:
    file = weights(server.add("f", SIZE, always=always))
    if expected is None:
        pull(folders, file)
        assert_is_there(folders)
        return
    with pytest.raises(expected):
        pull(folders, file)
    assert "checkpoints/a.safetensors" not in listed(folders)


def test_a_wrong_file_is_kept_aside_and_named(server: HostileServer, folders: ModelFolders) -> None:
    with pytest.raises(WrongFile, match=r"kept as a\.safetensors\.wrong"):
        pull(folders, weights(server.add("f", SIZE), sha256="0" * 64))
    assert listed(folders) == ["checkpoints/a.safetensors.wrong"]


def test_a_file_of_unknown_size_and_hash_needs_a_server_that_tells_its_size(
    server: HostileServer, folders: ModelFolders
) -> None:
    with pytest.raises(DownloadFailed, match="tells the size"):
        pull(folders, weights(server.add("f", SIZE, always=chunked()), None, None))
    pull(folders, weights(server.add("g", SIZE, drop_after(0), drop_after(99)), None, None))
    assert_is_there(folders)


def test_a_file_that_changed_on_the_server_is_pulled_from_its_begin(
    server: HostileServer, folders: ModelFolders
) -> None:
    file = weights(server.add("f", SIZE, always=drop_after(1_000_000)), sha256=None)
    with pytest.raises(Cancelled):
        _pull_until(folders, file, 1_000_000)
    server.etags["f"] = '"two"'
    server.add("f", SIZE)
    pull(folders, file)
    assert_is_there(folders)
    assert server.headers_of("f")[-1]["If-Range"] == '"one"'


def _pull_until(folders: ModelFolders, file: StoredFile, received: int) -> None:
    run = Pull(plan_pull([Model("m", {"f": file})], folders), folders, QUICK)
    thread = threading.Thread(
        target=lambda: (wait_until(lambda: run.progress[0].received >= received), run.stop.set())
    )
    thread.start()
    try:
        run.run()
    finally:
        thread.join()


def test_a_part_of_another_url_or_without_facts_is_not_used(
    server: HostileServer, folders: ModelFolders
) -> None:
    (folders.models_dir / "checkpoints").mkdir()
    (folders.models_dir / "checkpoints/a.safetensors.part").write_bytes(b"x" * 1_000_000)
    (folders.models_dir / "checkpoints/a.safetensors.part.json").write_text("[1, ")
    pull(folders, weights(server.add("f", SIZE)))
    assert_is_there(folders)
    assert "Range" not in server.headers_of("f")[0]


def test_after_a_crash_of_the_machine_only_flushed_bytes_count(
    server: HostileServer, folders: ModelFolders
) -> None:
    url = server.add("f", SIZE)
    (folders.models_dir / "checkpoints").mkdir()
    part = folders.models_dir / "checkpoints/a.safetensors.part"
    part.write_bytes(bytes(Content(SIZE).read(0, 500_000)) + bytes(500_000))
    facts = {"url": url, "validator": '"one"', "boot": "another", "safe": 500_000}
    part.with_name(f"{part.name}.json").write_text(json.dumps(facts))
    pull(folders, weights(url, sha256=None))
    assert_is_there(folders)
    assert server.headers_of("f")[0]["Range"] == "bytes=500000-"


def test_ranges_work_beyond_30_gb(server: HostileServer, folders: ModelFolders) -> None:
    size = 30_000_000_000 + SIZE
    url = server.add("f", size, drop_after(1_000_000), drop_after(1_000_000))
    (folders.models_dir / "checkpoints").mkdir()
    part = folders.models_dir / "checkpoints/a.safetensors.part"
    with part.open("wb") as file:
        file.truncate(30_000_000_000)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    facts = {"url": url, "validator": '"one"', "boot": boot, "safe": 0}
    part.with_name(f"{part.name}.json").write_text(json.dumps(facts))
    pull(folders, weights(url, size, None))
    ranges = [headers["Range"] for headers in server.headers_of("f")]
    assert ranges == [f"bytes={30_000_000_000 + n * 1_000_000}-" for n in range(3)]
    with (folders.models_dir / "checkpoints/a.safetensors").open("rb") as file:
        file.seek(30_000_000_000)
        assert file.read() == b"".join(Content(size).blocks(30_000_000_000))


PULL = """
import signal, sys, resource
sys.path[:0] = [{root!r}]
from pathlib import Path
from tests.model_files.test_download import *
{setup}
try:
    pull(ModelFolders(Path({models!r})), weights({url!r}))
    print("done")
except EaselError as error:
    print(error.code)
"""


def process(folders: ModelFolders, url: str, setup: str = "") -> subprocess.Popen[str]:
    script = PULL.format(root=str(ROOT), setup=setup, models=str(folders.models_dir), url=url)
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_pull_that_was_killed_goes_on_where_it_was(server: HostileServer, folders: ModelFolders) -> None:
    url = server.add("f", SIZE, stall_after(2_000_000))
    part = folders.models_dir / "checkpoints/a.safetensors.part"
    killed = process(folders, url, "QUICK = HttpOptions(stall_timeout_s=60)\npull.__defaults__ = ()\n"
                     "import functools; pull.__kwdefaults__['options'] = QUICK")  # fmt: skip
    wait_until(lambda: part.exists() and part.stat().st_size == 2_000_000)
    killed.kill()
    killed.communicate()
    assert listed(folders) == ["checkpoints/a.safetensors.part", "checkpoints/a.safetensors.part.json"]
    pull(folders, weights(url))
    assert_is_there(folders)
    assert server.headers_of("f")[1]["Range"] == "bytes=2000000-"


def test_two_processes_pull_one_file_once(server: HostileServer, folders: ModelFolders) -> None:
    url = server.add("f", SIZE)
    both = [process(folders, url), process(folders, url)]
    assert [one.communicate()[0].strip() for one in both] == ["done", "done"]
    assert_is_there(folders)
    assert len(server.headers_of("f")) == 1


def test_a_full_disk_ends_the_pull_and_keeps_what_arrived(
    server: HostileServer, folders: ModelFolders
) -> None:
    url = server.add("f", SIZE)
    setup = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))"
    )
    assert process(folders, url, setup).communicate()[0].strip() == "model.disk_full"
    part = folders.models_dir / "checkpoints/a.safetensors.part"
    assert part.stat().st_size == 1_000_000
    pull(folders, weights(url))
    assert_is_there(folders)


def test_free_space_is_checked_for_all_files_together(server: HostileServer, folders: ModelFolders) -> None:
    free = os.statvfs(folders.models_dir)
    half = free.f_bavail * free.f_frsize * 6 // 10
    files = [weights(server.add(name, SIZE), half, None, name=name) for name in ("a", "b")]
    with pytest.raises(ModelDiskFull) as raised:
        pull(folders, *files)
    assert raised.value.details["needed"] == 2 * half
    assert server.requests == []


@pytest.mark.parametrize("name", ["../a", "x/../../a", "/etc/a", "a\\..\\b", "", "a\nb", "a\0b"])
def test_names_that_lead_out_of_the_folder_are_refused(name: str, folders: ModelFolders) -> None:
    with pytest.raises(ModelPathUnsafe):
        folders.target(weights(None, name=name))


def test_symlinks_out_of_the_folder_are_refused(folders: ModelFolders, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (folders.models_dir / "checkpoints").mkdir()
    (folders.models_dir / "checkpoints/SD").symlink_to(tmp_path / "outside")
    (folders.models_dir / "checkpoints/b").symlink_to(tmp_path / "outside/missing")
    for name in ("SD/a", "b"):
        with pytest.raises(ModelPathUnsafe, match="symlink"):
            folders.target(weights(None, name=name))


def test_a_whole_folder_may_be_a_symlink(
    server: HostileServer, folders: ModelFolders, tmp_path: Path
) -> None:
    (tmp_path / "big_disk").mkdir()
    (folders.models_dir / "checkpoints").symlink_to(tmp_path / "big_disk")
    pull(folders, weights(server.add("f", SIZE)))
    assert [path.name for path in (tmp_path / "big_disk").iterdir()] == ["a.safetensors"]


def test_a_part_that_is_a_symlink_is_not_followed(
    server: HostileServer, folders: ModelFolders, tmp_path: Path
) -> None:
    (folders.models_dir / "checkpoints").mkdir()
    (tmp_path / "precious").write_bytes(b"precious")
    (folders.models_dir / "checkpoints/a.safetensors.part").symlink_to(tmp_path / "precious")
    with pytest.raises(DownloadFailed):
        pull(folders, weights(server.add("f", SIZE)))
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_file_of_another_size_is_not_replaced(server: HostileServer, folders: ModelFolders) -> None:
    (folders.models_dir / "checkpoints").mkdir()
    (folders.models_dir / "checkpoints/a.safetensors").write_bytes(b"mine")
    with pytest.raises(DownloadFailed, match="exists with 4 bytes"):
        pull(folders, weights(server.add("f", SIZE)))
    assert (folders.models_dir / "checkpoints/a.safetensors").read_bytes() == b"mine"


def test_a_token_goes_only_to_its_host_and_only_for_gated_files(
    server: HostileServer, folders: ModelFolders
) -> None:
    with hostile_server() as storage:
        storage.add("f", SIZE)
        server.add("f", 0, always=redirect_to(f"{storage.url}/f"))
        host = server.url.removeprefix("http://")
        options = replace(QUICK, tokens={host: "secret"})
        pull(folders, weights(f"{server.url}/f", gated=True), options=options)
        assert_is_there(folders)
        assert [one.get("Authorization") for one in server.headers_of("f")] == ["Bearer secret"]
        assert [one.get("Authorization") for one in storage.headers_of("f")] == [None]
        pull(folders, weights(storage.add("g", SIZE), name="b"), options=options)
        assert "secret" not in repr(options)


def test_a_refusal_without_the_token_is_tried_once_with_it(
    server: HostileServer, folders: ModelFolders
) -> None:
    url = server.add("f", SIZE, status(401))
    options = replace(QUICK, tokens={server.url.removeprefix("http://"): "secret"})
    pull(folders, weights(url), options=options)
    assert [one.get("Authorization") for one in server.headers_of("f")] == [None, "Bearer secret"]


def test_passwords_of_netrc_are_not_sent(
    server: HostileServer, folders: ModelFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    pull(folders, weights(server.add("f", SIZE)))
    assert "Authorization" not in server.headers_of("f")[0]


def test_a_proxy_of_the_environment_is_used(
    server: HostileServer, folders: ModelFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hostile_server() as proxy:
        proxy.add("f", SIZE)
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        pull(folders, weights(server.add("f", SIZE)))
        assert proxy.headers_of("proxied")
    assert_is_there(folders)
    assert server.requests == []


def test_http_is_refused_for_other_machines(folders: ModelFolders) -> None:
    with pytest.raises(DownloadFailed, match="is not https"):
        pull(folders, weights("http://models.example/f"))


def test_several_files_are_pulled_and_one_that_fails_does_not_end_the_others(
    server: HostileServer, folders: ModelFolders
) -> None:
    good = [weights(server.add(name, SIZE), name=name) for name in ("a", "b", "c")]
    bad = weights(server.add("bad", SIZE, always=status(404)), name="bad")
    with pytest.raises(DownloadFailed, match="404"):
        pull(folders, bad, *good)
    assert listed(folders) == ["checkpoints/a", "checkpoints/b", "checkpoints/c"]


def test_a_folder_that_cannot_be_written_is_an_error_with_its_reason(
    server: HostileServer, folders: ModelFolders
) -> None:
    (folders.models_dir / "checkpoints").write_text("a file")
    with pytest.raises(DownloadFailed, match="cannot be written"):
        pull(folders, weights(server.add("f", SIZE)))


def test_a_pull_takes_at_most_50_mb_of_memory(server: HostileServer, folders: ModelFolders) -> None:
    size = 200_000_000
    url = server.add("f", size)
    setup = (
        "def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = used()\n"
        f"pull(ModelFolders(Path({str(folders.models_dir)!r})), weights({url!r}, {size}, None, name='big'))\n"
        f"assert used() - before < 50_000, used() - before\n"
    )
    run = process(folders, server.add("g", SIZE), setup)
    assert run.communicate()[0].strip() == "done"


_ = (resource, signal)  # for the scripts
