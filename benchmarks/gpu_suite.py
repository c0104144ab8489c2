"""Everything that needs a GPU, in one command and under ten minutes: ``python benchmarks/gpu_suite.py OUT``.

Builds and installs the package, runs the tests with the kernels compiled, the law tests through the fused ops on the GPU and compute-sanitizer on
the cache ops; then published models at full size with random weights, the ops beside their peers, and the embedded model end to end. Last it prints
what the project is meant to reach, and what of that was reached (``targets.py``). Each step has a time limit and a log; what a machine lacks is
recorded as not run, and what was measured before a limit is kept. ``OUT`` receives ``suite.json`` (conditions, and how each step ended), the steps'
results, ``summary.txt`` and ``logs.txt``.

``--device cpu`` runs the same steps, each small, on any machine: a trial of the suite, whose figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from gpu_steps import NAMES, PYTHON, STAGES, Step

ROOT = Path(__file__).resolve().parent.parent
_running: set[subprocess.Popen] = set()


def _stop(process: subprocess.Popen) -> None:
    """End a command with all that it started, which might hold the GPU."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _run_part(step: Step, part: Sequence[str], places: Mapping[str, str], environment: Mapping[str, str]) -> tuple[str, str]:
    """What a command printed, and how it ended."""
    command = [*step.command, *part]
    for name, place in places.items():
        command = [argument.replace(f"{{{name}}}", place) for argument in command]
    with tempfile.TemporaryFile("w+") as printed:
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment, **dict(step.environment)},
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            _running.add(process)
            try:
                code = process.wait(step.seconds)
                outcome = "passed" if code == 0 else f"failed: exit code {code}"
            finally:
                _stop(process)
                _running.discard(process)
        except subprocess.TimeoutExpired:
            outcome = f"cut off after {step.seconds} s"
        except OSError as error:
            outcome = f"not run: {error}"
        printed.seek(0)
        return f"\n==== {step.name}: {' '.join(command)}\n{printed.read()}", outcome


def run(step: Step, places: Mapping[str, str], environment: Mapping[str, str], log) -> dict:
    """Run one step; says how it ended and how long it took."""
    if step.needs and shutil.which(step.needs) is None:
        return {"outcome": f"not run: {step.needs} is not on this machine", "seconds": 0.0}
    started = time.monotonic()
    with ThreadPoolExecutor(len(step.parts)) as pool:
        ended = list(pool.map(lambda part: _run_part(step, part, places, environment), step.parts))
    log.write("".join(text for text, _ in ended))
    log.flush()
    outcomes = [outcome for _, outcome in ended]
    outcome = next((one for one in outcomes if one != "passed"), "passed")
    return {"outcome": outcome, "seconds": round(time.monotonic() - started, 1)}


def facts(device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Device, driver and versions; asked in a process of its own, because the package is installed by a step."""
    code = f"import json; from conditions import conditions; print(json.dumps(conditions({device!r})))"
    asked = subprocess.run(
        [PYTHON, "-c", code], cwd=ROOT / "benchmarks", env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    found = json.loads(asked.stdout) if asked.returncode == 0 else {"conditions": f"unknown: {asked.stderr.strip().splitlines()[-1:]}"}
    if device == "cuda" and shutil.which("nvidia-smi"):
        driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False)
        found["driver"] = driver.stdout.strip()
    return found


def built_for(device: str) -> dict[str, str]:
    """Settings of the build: the CUDA sources for the GPU that is there alone, which takes a third of the time."""
    if device != "cuda" or "CMAKE_CUDA_ARCHITECTURES" in os.environ:
        return {}
    code = "import torch; print('{}{}-real'.format(*torch.cuda.get_device_capability()))"
    asked = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False)
    return {"CMAKE_CUDA_ARCHITECTURES": asked.stdout.strip()} if asked.returncode == 0 else {}


class Suite:
    """A run of the steps, with what it knows so far in ``suite.json``."""

    def __init__(self, options: argparse.Namespace, out: Path, scratch: str, log):
        self.options, self.out, self.log = options, out, log
        self.places = {"out": str(out), "scratch": scratch}
        self.began = time.monotonic()
        self.environment = built_for(options.device)
        self.report: dict[str, dict] = {}
        self.conditions: dict[str, str] | None = None

    def stage(self, steps: Sequence[Step]) -> None:
        """Steps at the same time, those that were chosen."""
        chosen = [step for step in steps if step.name in (self.options.only or NAMES) and step.name not in self.options.skip]
        left = self.options.seconds - (time.monotonic() - self.began)
        if left < 30:
            ended = [{"outcome": "not run: no time left", "seconds": 0.0} for _ in chosen]
        else:
            limited = [replace(step, seconds=min(step.seconds, int(left))) for step in chosen]
            with ThreadPoolExecutor(max(len(limited), 1)) as pool:
                ended = list(pool.map(lambda step: run(step, self.places, self.environment, self.log), limited))
        for step, outcome in zip(chosen, ended, strict=True):
            self.report[step.name] = outcome
            print(f"{step.name:22} {outcome['outcome']}  ({outcome['seconds']} s)", flush=True)
            if step.name == "install" and outcome["outcome"] != "passed":
                # What needs nothing compiled can run from the source folders all the same.
                self.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "python")])
        if chosen:
            self.write()

    def write(self) -> None:
        """What is known so far."""
        self.conditions = self.conditions or facts(self.options.device, self.environment)
        (self.out / "suite.json").write_text(json.dumps({"conditions": self.conditions, "steps": self.report}, indent=1) + "\n")

    def summary(self) -> str:
        """Of all targets; in a process of its own, as the conditions."""
        asked = subprocess.run(
            [PYTHON, "benchmarks/targets.py", str(self.out)],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return asked.stdout if asked.returncode == 0 else f"no summary: {asked.stderr.strip().splitlines()[-1:]}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--device", choices=list(STAGES), default="cuda", help="cpu: the same steps, each small (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="STEP", help=f"run these steps of: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--skip", nargs="+", choices=NAMES, metavar="STEP", default=[], help="leave these steps out, such as install")
    parser.add_argument("--seconds", type=float, default=570, help="end all steps within this time (default: %(default)s)")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with (out / "logs.txt").open("w") as log, tempfile.TemporaryDirectory() as scratch:
            suite = Suite(options, out, scratch, log)
            for stage in STAGES[options.device]():
                suite.stage(stage)
            summary = suite.summary()
    finally:
        for process in list(_running):
            _stop(process)
        for half_written in out.glob(".*.partial*"):  # by a step that was cut off
            half_written.unlink()
    (out / "summary.txt").write_text(summary)
    print(f"\n{summary}", end="")
    return int(any(step["outcome"].startswith(("failed", "cut off")) for step in suite.report.values()))


if __name__ == "__main__":
    sys.exit(main())
