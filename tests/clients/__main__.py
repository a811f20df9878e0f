"""`python -m tests.clients`: real clients from the registries against a served Easel."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.clients.environments import ENVIRONMENTS, Environment, command, install, missing
from tests.clients.report import Result, report, result_of, spans, untested
from tests.clients.servers import serving

LONGEST_S = 1800
"""For the rows of one environment"""


def main() -> int:
    asked = arguments().parse_args()
    chosen = [environment for environment in ENVIRONMENTS if not asked.only or environment.name in asked.only]
    errors = {environment.name: error for environment in chosen if (error := not_ready(environment))}
    with tempfile.TemporaryDirectory(prefix="easel-clients-") as scratch:
        results = run_all(chosen, errors, Path(scratch), asked.url)
    print("\n" + report(results))
    left_out = set() if asked.only else untested(results)
    if left_out:
        print(f"\nNO CLIENT TESTED rows {spans(left_out)}")
    if any(result.is_missing for result in results):
        print("\nNOT EVERY CLIENT WAS TRIED: see above; --strict takes that for a failure")
    passes = [result.is_good or (result.is_missing and not asked.strict) for result in results]
    return 0 if all(passes) and not (asked.strict and left_out) else 1


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    names = [environment.name for environment in ENVIRONMENTS]
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument(
        "--url", default="", help="a real ComfyUI to stand behind Easel; else the sketch engine"
    )
    parser.add_argument(
        "--only", choices=names, action="append", help="just this environment; may be repeated"
    )
    parser.add_argument("--strict", action="store_true", help="fail also when a client cannot be tried here")
    return parser


def not_ready(environment: Environment) -> Result | None:
    """Installs it; what speaks against running it."""
    lacking = missing(environment)
    if lacking:
        return Result(
            environment.name, error=f"SKIPPED: there is no {' and no '.join(lacking)} here", is_missing=True
        )
    try:
        install(environment)
    except subprocess.CalledProcessError as error:
        return Result(
            environment.name, error=f"could not be installed: {error.cmd[0]} ended with {error.returncode}"
        )
    return None


def run_all(
    chosen: Sequence[Environment], errors: Mapping[str, Result], scratch: Path, url: str
) -> list[Result]:
    """The results of all of them, those that are not ready included."""
    if all(environment.name in errors for environment in chosen):
        return list(errors.values())
    with serving(scratch, url) as variables:
        return [
            errors.get(environment.name) or run(environment, scratch, variables) for environment in chosen
        ]


def run(environment: Environment, scratch: Path, variables: Mapping[str, str]) -> Result:
    """Runs the rows of one environment."""
    print(f"\n=== {environment.name}", flush=True)
    junit = scratch / f"{environment.name}.xml"
    todo = command(environment, junit)
    hidden = ("EASEL_", "OPENAI_", "PYTEST_", "PYTHON", "NODE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    # LiteLLM otherwise asks the network for a list of prices when it is imported.
    quiet = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        done = subprocess.run(
            todo.argv, cwd=todo.folder, env={**kept, **quiet, **variables}, timeout=LONGEST_S
        )
    except subprocess.TimeoutExpired:
        return Result(environment.name, error=f"its rows were not through after {LONGEST_S} s")
    result = result_of(environment.name, junit)
    if done.returncode and result.is_good:
        return Result(environment.name, error=f"its test runner ended with {done.returncode}")
    return result


if __name__ == "__main__":
    sys.exit(main())
