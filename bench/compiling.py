"""How long the compiler takes for one request, and for loading a whole catalogue."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from bench.server import ROOT
from bench.summary import summarize
from bench.testbed import Testbed, read_catalogue
from compiler import ImageRequest, compile_workflow
from schemas import read_yaml
from scratch_folder import ScratchFolder

MODELS, QUICK_MODELS = 1000, 100
TIMES, QUICK_TIMES = 500, 5
LOADS, QUICK_LOADS = 3, 1
QUICK_PROVED = 10
"""How many models of the shipped catalogue a quick run proves; all take a minute"""


def measure_compile(testbed: Testbed) -> dict[str, Any]:
    """Every model of the project's own catalogue, and a catalogue of 1,000 models made from them (a quick run: 100), in one
    file and in a folder with a file for each."""
    path = ROOT / "catalogue.yaml"
    catalogue = read_catalogue(path)
    quick = testbed.options.quick
    times, models = (QUICK_TIMES, QUICK_MODELS) if quick else (TIMES, MODELS)
    per_model = {}
    for model_id in (each.id for each in catalogue.models.values() if "generate" in each.workflows):
        request = ImageRequest(prompt="a lighthouse", seed=1, id="bench", model=model_id)
        per_model[model_id] = _timed(partial(compile_workflow, request, catalogue), times)
    with ScratchFolder("easel-bench-catalogue-") as folder:
        large = Path(folder) / "catalogue.yaml"
        large.write_text(multiply_models(path.read_text("utf-8"), models), "utf-8")
        loads = QUICK_LOADS if quick else LOADS
        load_s = _timed(partial(read_catalogue, large), loads)
        proved = [*catalogue.models][: QUICK_PROVED if quick else None]
        prove_s = _timed(partial(_prove, path, proved), QUICK_LOADS)
        own_s = _timed(partial(read_catalogue, path, split_models(large, Path(folder) / "own")), loads)
    return {
        "per_model_s": per_model,
        "catalogue": {"models": models, "load_s": load_s},
        "own_folder": {"files": models, "load_s": own_s},
        "shipped": {
            "models": len(catalogue.models),
            "load_s": _timed(partial(read_catalogue, path), loads),
            "prove_s": prove_s,
            "proved": len(proved),
        },
    }


def _prove(path: Path, models: Sequence[str]) -> None:
    """Load the catalogue without the proofs that are kept of these models, in a process of its own: this one has a cache
    of them."""
    code = (
        "import sys; from dataclasses import replace; from pathlib import Path; from compiler import *; "
        "root, path = map(Path, sys.argv[1:3]); "
        "paths = SourcePaths(path, root / 'templates_wf', root / 'schemas'); "
        "load_catalogue(replace(read_sources(paths), shipped_proofs=''), proved=sys.argv[3:])"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT), str(path), *models], cwd=ROOT, check=True)


def split_models(catalogue: Path, folder: Path) -> Path:
    """A folder with a file for each model of `catalogue`."""
    folder.mkdir()
    for name, model in read_yaml(catalogue.read_text("utf-8"))["models"].items():
        text = yaml.safe_dump({"models": {name: model}}, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text, "utf-8")
    return folder


def multiply_models(catalogue: str, count: int) -> str:
    """A catalogue of `count` models: those of `catalogue` repeated under new ids and without aliases."""
    document = yaml.safe_load(catalogue)
    models = itertools.islice(itertools.cycle(document["models"].values()), count)
    without_aliases = [{key: value for key, value in model.items() if key != "aliases"} for model in models]
    document["models"] = {f"model-{index:04}": model for index, model in enumerate(without_aliases)}
    document["default_model"] = "model-0000"
    return str(yaml.dump(document, Dumper=_WithoutAliases, sort_keys=False))


class _WithoutAliases(yaml.SafeDumper):
    """Writes repeated values again, as people do: with aliases the text would be a fifth as long, and be read in a
    quarter of the time."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _timed(function: Callable[[], object], times: int) -> dict[str, Any]:
    durations = []
    for _ in range(times):
        started_at = time.perf_counter()
        function()
        durations.append(time.perf_counter() - started_at)
    return summarize(durations)
