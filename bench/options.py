"""The options of the benchmark's commands."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """Another server with OpenAI's images API. `model`: the one to request; None: the server's default."""

    name: str
    url: str
    model: str | None


@dataclass(frozen=True)
class Options:
    """The command line's options. `url`: a running ComfyUI; None: the sketch engine. `quick`: few repetitions.
    `model_size`: of the per-model pictures; None: the default. `sizes` and `clients`: empty for the usual ones."""

    url: str | None = None
    quick: bool = False
    model_size: str | None = None
    checkpoint: str | None = None
    engine_pid: int | None = None
    sizes: Sequence[int] = ()
    clients: Sequence[int] = ()
    peers: Sequence[Peer] = ()


def writable_path(text: str) -> Path:
    """For argparse: a file that can probably be written once everything is measured."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in a folder that can be written")
    return path


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that choose the engine and how long to measure."""
    parser.add_argument(
        "--url", help="a running ComfyUI, such as http://127.0.0.1:8188; default: the sketch engine"
    )
    parser.add_argument(
        "--engine-pid", type=int, metavar="PID",
        help="with --url: ComfyUI's process, for its CPU time; default: the one that listens there, if it is local",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint",
        help="with --url: the Stable Diffusion 1.x checkpoint for streams; default: a likely one",
    )
    parser.add_argument(
        "--quick", action="store_true", help="few repetitions, to check that the benchmark itself works"
    )
