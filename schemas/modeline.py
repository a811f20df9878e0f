"""The comment by which editors with the YAML language server find the schema of a file, for completion and errors."""

from __future__ import annotations

from pathlib import Path

from schemas.loading import FOLDER

OWN_CATALOGUE = "own_catalogue"
"""The schema of the files in the owner's folder"""


def modeline(folder: Path, schema: str = OWN_CATALOGUE) -> str:
    """The first line of a YAML file in `folder`: a relative path if the folder belongs to this installation, otherwise the
    URI of the file, since a server need not run while somebody edits. Has no line end."""
    folder, target = folder.absolute(), FOLDER / f"{schema}.schema.json"
    if folder.is_relative_to(FOLDER.parent):
        steps = [".."] * len(folder.relative_to(FOLDER.parent).parts)
        return f"# yaml-language-server: $schema={'/'.join([*steps, FOLDER.name, target.name])}"
    return f"# yaml-language-server: $schema={target.as_uri()}"
