"""Which form the state directory has, so that an older Easel does not damage what a newer one has written."""

from __future__ import annotations

import json
from pathlib import Path

from errors import SettingsInvalid
from installation import VERSION
from state_files import KeptFile, read_file, read_state

FORMAT = 1
"""Increase it with a change after which the version before would lose or damage something, such as a new field of the status
of a job. What is only not understood by it, such as a new table of the index, has a version of its own."""
FILE_NAME = "format.json"
_MAX_VERSION = 40


def check_format(state_dir: Path) -> None:
    """Write the form and version of this Easel into the directory, unless a newer form is written there. Call it with the
    server's lock. Raises SettingsInvalid for a newer form, and OSError if the file cannot be read or written."""
    refuse_newer(state_dir)
    path = state_dir / FILE_NAME
    read_state(path, _parse)  # a damaged file is kept for diagnosis
    KeptFile(path, json.dumps({"format": FORMAT, "easel": VERSION}).encode() + b"\n").restore()


def refuse_newer(state_dir: Path) -> None:
    """Raises SettingsInvalid for a newer form, and OSError if the file cannot be read: it may name a newer one. Writes
    nothing."""
    try:
        written = _parse(json.loads(read_file(state_dir / FILE_NAME)))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return
    if written[0] > FORMAT:
        raise SettingsInvalid(
            f"The state directory {str(state_dir)!r} was last used by a newer Easel, {written[1]}, whose files this one, "
            f"{VERSION}, would damage. Install the newer one again, or name another folder by EASEL_STATE_DIR (or "
            "--state-dir). Nothing was changed."
        )


def _parse(document: object) -> tuple[int, str]:
    if not isinstance(document, dict) or type(document.get("format")) is not int:
        raise ValueError("not a number of a format")
    # It is printed in terminals.
    version = "".join(letter for letter in str(document.get("easel")) if letter.isprintable())
    return document["format"], version[:_MAX_VERSION]
