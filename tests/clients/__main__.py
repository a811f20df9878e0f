"""`python -m tests.clients`: tests real clients from the package registries against running Easel servers."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scratch_folder import ScratchFolder
from tests.clients.environments import (
    ENVIRONMENTS,
    Environment,
    install,
    missing_programs,
    row_command,
)
from tests.clients.report import Result, read_result, report, row_ranges, untested
from tests.clients.servers import start_servers

ENVIRONMENT_TIMEOUT_S = 1800
"""For all rows of one environment"""


def main() -> int:
    arguments = argument_parser().parse_args()
    selected = [
        environment
        for environment in ENVIRONMENTS
        if not arguments.only or environment.name in arguments.only
    ]
    errors = {environment.name: error for environment in selected if (error := prepare(environment))}
    with ScratchFolder("easel-clients-") as scratch:
        results = run_all(selected, errors, Path(scratch), arguments.url, arguments.llama_server)
    print("\n" + report(results))
    untested_rows = set() if arguments.only else untested(results)
    if untested_rows:
        print(f"\nNO CLIENT TESTED rows {row_ranges(untested_rows)}")
    if any(result.is_missing for result in results):
        print("\nSOME CLIENTS WERE SKIPPED, see above; with --strict this is a failure")
    passed = [result.is_good or (result.is_missing and not arguments.strict) for result in results]
    return 0 if all(passed) and not (arguments.strict and untested_rows) else 1


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    names = [environment.name for environment in ENVIRONMENTS]
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument(
        "--url", default="", help="a running ComfyUI for Easel to use; default: the sketch engine"
    )
    parser.add_argument(
        "--llama-server", default="", help="a running llama-server in router mode, for the chat rows, too"
    )
    parser.add_argument(
        "--only", choices=names, action="append", help="run only this environment; may be repeated"
    )
    parser.add_argument("--strict", action="store_true", help="fail also if a client cannot run here")
    return parser


def prepare(environment: Environment) -> Result | None:
    """Install the environment. Returns a result with the error if it cannot run."""
    missing = missing_programs(environment)
    if missing:
        return Result(
            environment.name, error=f"SKIPPED: not installed here: {', '.join(missing)}", is_missing=True
        )
    try:
        install(environment)
    except subprocess.CalledProcessError as error:
        return Result(
            environment.name,
            error=f"could not be installed: {error.cmd[0]} exited with status {error.returncode}",
        )
    return None


def run_all(
    environments: Sequence[Environment],
    errors: Mapping[str, Result],
    scratch: Path,
    url: str,
    llama_server: str,
) -> list[Result]:
    """The results of all environments, including those that could not be prepared."""
    if all(environment.name in errors for environment in environments):
        return list(errors.values())
    with start_servers(scratch, url, llama_server) as variables:
        return [
            errors.get(environment.name) or run(environment, scratch, variables)
            for environment in environments
        ]


def run(environment: Environment, scratch: Path, variables: Mapping[str, str]) -> Result:
    """Run the rows of one environment."""
    print(f"\n=== {environment.name}", flush=True)
    junit = scratch / f"{environment.name}.xml"
    command = row_command(environment, junit)
    removed = ("EASEL_", "OPENAI_", "ANTHROPIC_", "OLLAMA_", "PYTEST_", "PYTHON", "NODE_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    # Without the first, LiteLLM downloads a list of prices when it is imported.
    offline = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        process = subprocess.run(
            command.argv,
            cwd=command.folder,
            env={**inherited, **offline, **variables},
            timeout=ENVIRONMENT_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return Result(environment.name, error=f"the rows did not finish within {ENVIRONMENT_TIMEOUT_S} s")
    result = read_result(environment.name, junit)
    if process.returncode and result.is_good:
        return Result(environment.name, error=f"the test runner exited with status {process.returncode}")
    return result


if __name__ == "__main__":
    sys.exit(main())
