"""Everything that needs a GPU, in one command: ``python benchmarks/gpu_suite.py OUT``.

Builds and installs the package, runs the whole test suite with the kernels compiled, the law tests through the fused ops on the GPU,
compute-sanitizer on the cache ops, the kernel benchmarks with their peers, published models at full size with random weights, and the embedded
model end to end. Each step has a time limit and a log; what a machine lacks is recorded as not run. ``OUT`` receives ``suite.json`` (conditions,
and how each step ended), the steps' results and ``logs.txt``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Step:
    """A command, how long it may take, and a program that it cannot do without.

    ``{out}`` in an argument is the folder of results. With ``parts`` the command runs once with each of them, all at the same time.
    """

    name: str
    command: list[str]
    seconds: int
    needs: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    parts: tuple[tuple[str, ...], ...] = ((),)


PYTHON = sys.executable
# The command, not `python -m pytest`, which would put the source folder before the installed package.
PYTEST = str(Path(sys.executable).with_name("pytest"))
#: Folders of tests that have a process of their own.
APART = ("adapters", "decoder", "law", "ops", "training")
STEPS = (
    Step("install", [PYTHON, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "."], 180),
    Step("info", [PYTHON, "-c", "from sjd2.cli import main; main(['info'])"], 60),
    Step("triton tests", [PYTEST, "-q", "-m", "not full", "tests/fused", "tests/kv_cache"], 300),
    Step(
        "law tests on the GPU",
        [PYTEST, "-q", "-m", "not full", "tests/law/test_law.py", "tests/law/test_rows_alone.py"],
        240,
        environment=(("SJD2_TEST_DEVICE", "cuda"),),
    ),
    Step(
        "other tests",
        [PYTEST, "-q", "-m", "not full"],
        420,
        environment=(("OMP_NUM_THREADS", "2"),),
        parts=(*((f"tests/{folder}",) for folder in APART), ("tests", *(f"--ignore=tests/{folder}" for folder in ("fused", "kv_cache", *APART)))),
    ),
    Step(
        "memcheck",
        ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", PYTEST, "-q", "tests/kv_cache/test_cuda.py"],
        240,
        needs="compute-sanitizer",
    ),
    Step(
        "racecheck",
        ["compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9", PYTEST, "-q", "tests/kv_cache/test_cuda.py"],
        240,
        needs="compute-sanitizer",
    ),
    Step("fused ops", [PYTHON, "benchmarks/fused_ops.py", "--device", "cuda", "-o", "{out}/fused_ops.json", "--csv", "{out}/fused_ops.csv"], 420),
    Step("kv cache", [PYTHON, "benchmarks/kv_cache.py", "--device", "cuda", "-o", "{out}/kv_cache.json"], 120),
    Step(
        "full size",
        [PYTHON, "benchmarks/full_size.py", "--end-to-end", "4", "-o", "{out}/full_size.json"],
        300,
    ),
    Step(
        "embedded model",
        [PYTHON, "benchmarks/embedded_model.py", "--device", "cuda", "--timed", "4", "--work", "{out}/cells", "-o", "{out}/embedded_model.json"],
        300,
    ),
)


def run(step: Step, out: Path, log) -> dict:
    """Run one step; says how it ended and how long it took."""
    if step.needs and shutil.which(step.needs) is None:
        return {"outcome": f"not run: {step.needs} is not on this machine", "seconds": 0.0}
    started = time.monotonic()
    with ThreadPoolExecutor(len(step.parts)) as pool:
        ended = list(pool.map(lambda part: _run_part(step, part, out), step.parts))
    for text, _ in ended:
        log.write(text)
    log.flush()
    outcomes = [outcome for _, outcome in ended]
    outcome = next((one for one in outcomes if one != "passed"), "passed")
    return {"outcome": outcome, "seconds": round(time.monotonic() - started, 1)}


def _run_part(step: Step, part: Sequence[str], out: Path) -> tuple[str, str]:
    """What a command printed, and how it ended."""
    command = [argument.replace("{out}", str(out)) for argument in (*step.command, *part)]
    with tempfile.TemporaryFile("w+") as printed:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | dict(step.environment),
                stdout=printed,
                stderr=subprocess.STDOUT,
                timeout=step.seconds,
                check=False,
            )
            outcome = "passed" if done.returncode == 0 else f"failed: exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            outcome = f"cut off after {step.seconds} s"
        except OSError as error:
            outcome = f"not run: {error}"
        printed.seek(0)
        return f"\n==== {step.name}: {' '.join(command)}\n{printed.read()}", outcome


def facts() -> dict[str, str]:
    """Device, driver and versions; asked in a process of its own, because the package is installed by a step."""
    code = "import json; from conditions import conditions; print(json.dumps(conditions('cuda')))"
    asked = subprocess.run([PYTHON, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False)
    found = json.loads(asked.stdout) if asked.returncode == 0 else {"conditions": f"unknown: {asked.stderr.strip().splitlines()[-1:]}"}
    if shutil.which("nvidia-smi"):
        driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False)
        found["driver"] = driver.stdout.strip()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="run these steps (default: all)")
    parser.add_argument("--seconds", type=float, default=570, help="start no step that cannot end within this time (default: %(default)s)")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    began, report, conditions = time.monotonic(), {}, None
    with (out / "logs.txt").open("w") as log:
        for step in STEPS:
            if options.only and step.name not in options.only:
                continue
            left = options.seconds - (time.monotonic() - began)
            if left < 30:
                report[step.name] = {"outcome": "not run: no time left", "seconds": 0.0}
            else:
                limited = replace(step, seconds=min(step.seconds, int(left)))
                report[step.name] = run(limited, out, log)
            print(f"{step.name:22} {report[step.name]['outcome']}  ({report[step.name]['seconds']} s)", flush=True)
            conditions = conditions or facts()
            (out / "suite.json").write_text(json.dumps({"conditions": conditions, "steps": report}, indent=1) + "\n")
    return int(any(step["outcome"].startswith(("failed", "cut off")) for step in report.values()))


if __name__ == "__main__":
    sys.exit(main())
