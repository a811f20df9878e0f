"""Who may use the GPU now: leases, one state that all processes share, and one reconciler that passes the GPU on. Knows
two tenants and how long to wait; never what a graph, a prompt or a model file is."""

from arbiter.arbiter import Arbiter, Lease, View
from arbiter.board import JobProgress
from arbiter.holds import Hold
from arbiter.values import Mode, Policy, State, Switch

__all__ = ["Arbiter", "Hold", "JobProgress", "Lease", "Mode", "Policy", "State", "Switch", "View"]
