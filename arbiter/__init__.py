"""Who may use the GPU now: leases, one state shared by all processes, and one reconciler that hands the GPU over. Knows
two tenants and how long to wait; never what a graph, a prompt or a model file is. README.md describes the design."""

from arbiter.active_requests import UNKNOWN_SENDER, ActiveRequest, Sender
from arbiter.arbiter import Arbiter, Lease, Snapshot
from arbiter.fair_queue import Turn, Turns, flow_of, queue_order, with_turn
from arbiter.job_progress import JobProgress
from arbiter.leases import Claim
from arbiter.outlook import Outlook
from arbiter.switch_history import PastSwitch
from arbiter.values import Mode, Policy, State, Switch
from arbiter.waiting import Waiting, because, pictures_before
from arbiter.waiting_threads import WaitReport

__all__ = [
    "UNKNOWN_SENDER",
    "ActiveRequest",
    "Arbiter",
    "Claim",
    "JobProgress",
    "Lease",
    "Mode",
    "Outlook",
    "PastSwitch",
    "Policy",
    "Sender",
    "Snapshot",
    "State",
    "Switch",
    "Turn",
    "Turns",
    "WaitReport",
    "Waiting",
    "because",
    "flow_of",
    "pictures_before",
    "queue_order",
    "with_turn",
]
