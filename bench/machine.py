"""What was measured, and where: a report without that says little."""

from __future__ import annotations

import os
import platform

from bench.processes import cpu_model
from bench.testbed import Testbed, get_json


def machine(testbed: Testbed) -> dict[str, str]:
    """The engine, device, CPU and gateway that the run measures."""
    stats = get_json(f"{testbed.engine.url}/system_stats")
    system, devices = stats["system"], stats["devices"]
    pid = testbed.engine.pid
    kind = "Easel's sketch engine, as ComfyUI" if system.get("easel_sketch") else "ComfyUI"
    names = ", ".join(f"{device['name']} ({device['type']})" for device in devices)
    versions = f"Python {system['python_version'].split()[0]}, PyTorch {system['pytorch_version']}"
    return {
        "engine": f"{kind} {system['comfyui_version']}; {versions}",
        "its CPU": f"of process {pid}"
        if pid
        else "not measured: the process is not on this machine; see --engine-pid",
        "device": names,
        "CPU": cpu_model(),
        "gateway": f"two workers (the default); Python {platform.python_version()}, {platform.platform()}",
        "load": f"load average at the start {load_average()}",
    }


def load_average() -> str:
    """Of the last minute."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
