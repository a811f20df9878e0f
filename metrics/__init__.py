"""What Prometheus reads: counts events in files that all workers share, and describes the state of the server."""

from metrics.exposition import CONTENT_TYPE, Exposition
from metrics.families import FAMILIES, Family
from metrics.gauges import Build, ServerState
from metrics.recorder import Recorder
from metrics.value_files import ValueFiles

__all__ = [
    "CONTENT_TYPE",
    "FAMILIES",
    "Build",
    "Exposition",
    "Family",
    "Recorder",
    "ServerState",
    "ValueFiles",
]
