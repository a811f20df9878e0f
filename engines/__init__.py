"""The ComfyUIs of this host, one per GPU: which of them draws a job, what that was measured to cost, which are drained or
down. README.md describes how one is chosen."""

from engines.assembly import AssemblyOptions, assemble
from engines.choice import Candidate, Choice, Refusal, Wanted, choose, should_move
from engines.choice import explain as explain_choice
from engines.drains import Drains
from engines.entries import EngineEntry, credential_variables, engines_of_text, read_engines
from engines.fleet import Fleet
from engines.forecast import JobCosts, forecast, forecast_after, keeps_loaded
from engines.last_good import LastGoodEngines
from engines.live import LiveEngines
from engines.measured_costs import Cost, Costs, CostStore
from engines.unit import EngineUnit

__all__ = [
    "AssemblyOptions",
    "Candidate",
    "Choice",
    "Cost",
    "CostStore",
    "Costs",
    "Drains",
    "EngineEntry",
    "EngineUnit",
    "Fleet",
    "JobCosts",
    "LastGoodEngines",
    "LiveEngines",
    "Refusal",
    "Wanted",
    "assemble",
    "choose",
    "credential_variables",
    "engines_of_text",
    "explain_choice",
    "forecast",
    "forecast_after",
    "keeps_loaded",
    "read_engines",
    "should_move",
]
