"""Runs one picture request: `Generator.generate` does all of it. `Generator.prepare` does what needs no GPU and
returns a `Drawing`, whose `images` runs the jobs one after another."""

from generation.admission import Admission
from generation.drawing import Drawing, parameters_text
from generation.editor_files import EditorFile, write_for_editor
from generation.engine_session import JobCallbacks
from generation.generator import Generator
from generation.image_facts import RequestOrigin, facts_of_file
from generation.job_runs import JobRuns
from generation.model_state import ModelState, fits_gpu, model_state
from generation.notes import note_entries
from generation.preloading import PRELOAD_INTERVAL_S, preload, warm_up
from generation.record import DrawingRecord
from generation.runs import Hosts, JobResult, RequestedJobs, Runs, Session, TimeLeft
from generation.stage_state import StageState, stage_states
from generation.unused_files import announce_unused_files, listed_choices
from generation.uploads import Uploads, with_source
from generation.values import (
    MIME,
    Generation,
    Image,
    MetadataPolicy,
    OutputFormat,
    OutputOptions,
    Pictures,
    Timings,
)

__all__ = [
    "MIME",
    "PRELOAD_INTERVAL_S",
    "Admission",
    "Drawing",
    "DrawingRecord",
    "EditorFile",
    "Generation",
    "Generator",
    "Hosts",
    "Image",
    "JobCallbacks",
    "JobResult",
    "JobRuns",
    "MetadataPolicy",
    "ModelState",
    "OutputFormat",
    "OutputOptions",
    "Pictures",
    "RequestOrigin",
    "RequestedJobs",
    "Runs",
    "Session",
    "StageState",
    "TimeLeft",
    "Timings",
    "Uploads",
    "announce_unused_files",
    "facts_of_file",
    "fits_gpu",
    "listed_choices",
    "model_state",
    "note_entries",
    "parameters_text",
    "preload",
    "stage_states",
    "warm_up",
    "with_source",
    "write_for_editor",
]
