"""The story of one picture request. `Generator.generate` tells it whole; `Generator.prepare` stops where the GPU is needed,
and the `Drawing` that it gives goes on from there, picture by picture."""

from generation.admission import Admission
from generation.drawing import Drawing, parameters_text
from generation.generator import Generator
from generation.preloading import PRELOAD_PAUSE_S, preload
from generation.uploads import with_source
from generation.values import (
    MIME,
    Generation,
    Image,
    MetadataPolicy,
    OutputFormat,
    OutputOptions,
    Pictures,
    ProgressCallback,
    Timings,
)

__all__ = [
    "MIME",
    "PRELOAD_PAUSE_S",
    "Admission",
    "Drawing",
    "Generation",
    "Generator",
    "Image",
    "MetadataPolicy",
    "OutputFormat",
    "OutputOptions",
    "Pictures",
    "ProgressCallback",
    "Timings",
    "parameters_text",
    "preload",
    "with_source",
]
