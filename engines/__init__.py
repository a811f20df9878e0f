"""The ComfyUIs of this host, one per GPU: which of them draws a job, what that was measured to cost, which are drained or
down. README.md describes how one is chosen."""

from engines.assembly import AssemblyOptions, assemble
from engines.choice import Candidate, Choice, Refusal, Wanted, choose, should_move
from engines.drains import Drains
from engines.entries import EngineEntry, read_engines
from engines.fleet import Fleet
from engines.measured_costs import CostStore
from engines.unit import EngineUnit

__all__ = [
    "AssemblyOptions",
    "Candidate",
    "Choice",
    "CostStore",
    "Drains",
    "EngineEntry",
    "EngineUnit",
    "Fleet",
    "Refusal",
    "Wanted",
    "assemble",
    "choose",
    "read_engines",
    "should_move",
]
