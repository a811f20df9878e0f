"""flask write-proofs: proves the shipped catalogue and keeps the result, so that a start does not have to."""

from __future__ import annotations

from dataclasses import replace

import click

from commands.context import handle_errors, services, write_file
from compiler import SourcePaths, load_catalogue, proofs_to_keep, read_sources
from compiler.sources import PROOFS


@click.command("write-proofs", short_help="Prove the shipped catalogue and write schemas/proofs.json.")
@handle_errors
def write_proofs() -> None:
    """Prove every model of the shipped catalogue and write schemas/proofs.json, which later starts read. For those who
    change catalogue.yaml, a template or the compiler in this repository; without it, every start takes seconds longer."""
    paths = services().source_paths
    path = paths.schemas / PROOFS
    write_file(path, shipped_proofs(paths).encode("utf-8"))
    click.echo(f"wrote {path.name}")


def shipped_proofs(paths: SourcePaths) -> str:
    """The proofs of the shipped catalogue, all made now."""
    shipped = SourcePaths(paths.catalogue, paths.templates, paths.schemas)
    sources = replace(read_sources(shipped), shipped_proofs="")
    return proofs_to_keep(load_catalogue(sources))
