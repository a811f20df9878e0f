"""Makes the engines of the setting `engines`: of each its client, its process, and the arbiter of its GPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from arbiter import Arbiter, Policy
from engine import Engine, EngineProcess, EngineSelector, EngineTenant
from engines.entries import EngineEntry
from engines.measured_costs import CostStore
from engines.unit import EngineUnit
from gpu_tenant import Tenant
from observer import Observer, SwitchesOfGpu

GPUS_FOLDER = "gpus"
"""In the state directory, with a folder for each GPU. An engine that was not named has the folder `gpu`."""


@dataclass(frozen=True)
class AssemblyOptions:
    """What all engines share. `state_dir`: the state directory. `hidden_variables`: those that a started engine does not
    get. The rest is as for `Arbiter`, `Engine` and `EngineTenant`."""

    state_dir: Path
    policy: Policy
    event_log_bytes: int
    start_timeout_s: float
    stall_timeout_s: float
    observer: Observer
    hidden_variables: Iterable[str] = ()


def assemble(entry: EngineEntry, llms: Tenant | None, options: AssemblyOptions) -> EngineUnit:
    """`llms`: the LLM stacks that share its GPU, None if there are none."""
    folder = options.state_dir / GPUS_FOLDER / entry.gpu
    process = EngineProcess.from_setting(entry.start, folder, options.hidden_variables)
    selector = EngineSelector(
        entry.url,
        sketch_url=lambda: None,
        state_dir=folder,
        probe_urls=(),
        make_engine=partial(Engine, credentials=entry.credentials, stall_timeout_s=options.stall_timeout_s),
    )
    tenant = EngineTenant(selector.current, process, start_timeout_s=options.start_timeout_s)
    policy = options.policy if entry.depth is None else replace(options.policy, depth=entry.depth)
    arbiter = Arbiter(
        folder,
        tenants=None if llms is None else {"inference": llms, "generation": tenant},
        engine=tenant,
        policy=policy,
        available_bytes=tenant.available_bytes,
        engine_down=tenant.can_be_started,
        event_log_bytes=options.event_log_bytes,
        queues_all=True,
        observer=SwitchesOfGpu(options.observer, entry.gpu),
    )
    return EngineUnit(
        *(entry.name, selector, tenant, arbiter, process),
        gpu=entry.gpu,
        url=entry.url,
        models=None if entry.models is None else frozenset(entry.models),
        weight=entry.weight,
        can_start=process.can_start and llms is not None,
        costs=CostStore(folder / "costs.json"),
    )
