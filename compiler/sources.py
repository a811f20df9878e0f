"""The texts that a catalogue is made of. Reading them is the compiler's only I/O; everything after is pure."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from errors import CatalogueInvalid

TEMPLATE_SUFFIX = ".json.j2"


@dataclass(frozen=True)
class SourcePaths:
    """Where the texts lie."""

    catalogue: Path
    templates: Path
    schemas: Path

    def files(self) -> list[Path]:
        """Every file that a change of would make another catalogue."""
        return [
            self.catalogue,
            self.schemas / "nodes.json",
            self.schemas / "sampling_names.yaml",
            self.schemas / "catalogue.schema.json",
            *sorted(self.templates.glob(f"*{TEMPLATE_SUFFIX}")),
        ]


@dataclass(frozen=True)
class Sources:
    """The texts themselves. Two equal `Sources` make the same catalogue."""

    catalogue_name: str
    catalogue: str
    catalogue_schema: str
    nodes: str
    sampling_names: str
    templates: Mapping[str, str]
    """File name -> text."""

    def dump(self) -> str:
        """One JSON text, for `load`: how a last good catalogue outlives a bad edit."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Sources:
        return cls(**json.loads(text))


def read_sources(paths: SourcePaths) -> Sources:
    """Read every text. Raises CatalogueInvalid when one cannot be read."""
    return Sources(
        catalogue_name=paths.catalogue.name,
        catalogue=_read(paths.catalogue),
        catalogue_schema=_read(paths.schemas / "catalogue.schema.json"),
        nodes=_read(paths.schemas / "nodes.json"),
        sampling_names=_read(paths.schemas / "sampling_names.yaml"),
        templates={path.name: _read(path) for path in sorted(paths.templates.glob(f"*{TEMPLATE_SUFFIX}"))},
    )


def _read(path: Path) -> str:
    try:
        # Anything but a plain file might never end, or never begin.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CatalogueInvalid(f"{path.name} is not a file")
        return path.read_text("utf-8")
    except OSError as error:
        raise CatalogueInvalid(f"{path.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CatalogueInvalid(f"{path.name} is not UTF-8 at byte {error.start}") from error
