"""Commands that pull files on another machine, for a ComfyUI whose folders are not here."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

from model_files.plan import files_of
from model_files.weights import ModelWithFiles, Weights


def shell_commands(models: Sequence[ModelWithFiles]) -> Iterator[str]:
    """The lines of a shell that pull and check the files of `models`, to be run in ComfyUI's folder `models`. The caller has
    checked their licences. Raises InvalidValue as `files_of` does."""
    for file in files_of(models, lambda file: (file.folder, file.name)).values():
        yield from _commands(file)


def _commands(file: Weights) -> Iterable[str]:
    path = f"{file.folder}/{file.name}"
    if file.url is None:
        return [f"# {shlex.quote(path)}: the catalogue has no url for this file"]
    place, part = shlex.quote(path), shlex.quote(f"{path}.part")
    token = '-H "Authorization: Bearer $HF_TOKEN" ' if file.gated else ""
    check = f"echo {shlex.quote(f'{file.sha256}  {path}.part')} | sha256sum -c && " if file.sha256 else ""
    return [
        f"mkdir -p {shlex.quote(path.rpartition('/')[0])} && "
        f"curl -L --fail --retry 8 -C - {token}-o {part} {shlex.quote(file.url)} && {check}mv -n {part} {place}"
    ]
