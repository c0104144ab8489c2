"""The steps of ``gpu_suite.py``: on a GPU, and the same ones small enough for two cores."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """A command, how long it may take, and a program that it cannot do without.

    ``{out}`` in an argument is the folder of results, ``{scratch}`` one that is thrown away. With ``parts`` the command runs once with each of them,
    all at the same time.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    needs: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    parts: tuple[tuple[str, ...], ...] = ((),)


#: Steps that run at the same time.
Stage = tuple[Step, ...]

PYTHON = sys.executable
# The commands, not `python -m`, which would put the source folder before the installed package.
PYTEST, SJD2 = (str(Path(sys.executable).with_name(name)) for name in ("pytest", "sjd2"))
# What PyTorch asks the driver in vain, and handles, is no error of the ops.
SANITIZER = ("compute-sanitizer", "--report-api-errors", "no", "--error-exitcode", "9", "--tool")
INSTALL = Step("install", (PYTHON, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "."), 150)
INFO = Step("info", (SJD2, "info"), 60)
EMBEDDED = ("benchmarks/embedded_model.py", "--work", "{scratch}", "-o", "{out}/embedded_model.json")


def _pytest(*arguments: str, processes: int = 1) -> tuple[str, ...]:
    """Every test on a line, so that the log of a step that is cut off says how far it came."""
    spread = ("-n", str(processes)) if processes > 1 and find_spec("xdist") else ()
    return (PYTEST, "-v", *spread, "-m", "not full", *arguments)


def _benchmark(script: str, device: str, *arguments: str) -> tuple[str, ...]:
    return (PYTHON, f"benchmarks/{script}", "--device", device, *arguments)


def _compile(vocabularies: str, rules_at: str = "", compiled_at: str = "") -> tuple[str, ...]:
    return ("--vocab", *vocabularies.split(), "--all-rules-at", *rules_at.split(), "--compiled-at", *compiled_at.split())


def on_gpu() -> tuple[Stage, ...]:
    """What needs the GPU for being right, and compilers, side by side; what is timed by itself; last all other tests, which CI runs, too.

    Limits leave room. Estimated for an H100 with 16 cores, in seconds: install 70, tests 130 (some 200 kernels are compiled), full size 135 (54
    shapes at about 1.5, six images at about 5, three models at 8), fused ops 60, window attention 30,
    KV cache 20, embedded model 45, other tests with what is left.
    """
    few = (("HYPOTHESIS_PROFILE", "few"),)
    tests: Stage = (
        Step("kernel tests", _pytest("tests/fused", "tests/kv_cache", "tests/decoder/test_graphs.py", processes=5), 200, environment=few),
        Step(
            "law tests on the GPU",
            _pytest("tests/law/test_law.py", "tests/law/test_rows_alone.py", processes=3),
            200,
            environment=(("SJD2_TEST_DEVICE", "cuda"),),
        ),
        Step("memcheck", (*SANITIZER, "memcheck", PYTEST, "-q", "tests/kv_cache/test_cuda.py"), 200, needs="compute-sanitizer", environment=few),
        Step("racecheck", (*SANITIZER, "racecheck", PYTEST, "-q", "tests/kv_cache/test_cuda.py"), 200, needs="compute-sanitizer", environment=few),
        # What the fused ops' step runs, compiled ahead of it, each part for some of the sizes.
        Step(
            "compile kernels",
            _benchmark("fused_ops.py", "cuda", "--compile-only"),
            200,
            parts=(
                _compile("1000 16384 32768"),
                _compile("8192", rules_at="8192"),
                _compile("65536 184622"),
                _compile("131072", rules_at="131072"),
                _compile("1000", compiled_at="8192 65536"),
            ),
        ),
    )
    timed = (
        Step("full size", _benchmark("full_size.py", "cuda", "--end-to-end", "4", "-o", "{out}/full_size.json"), 220),
        Step("fused ops", _benchmark("fused_ops.py", "cuda", "-o", "{out}/fused_ops.json"), 150),
        Step("window attention", _benchmark("window_attention.py", "cuda", "--window", "1", "64", "-o", "{out}/window_attention.json"), 60),
        Step("kv cache", _benchmark("kv_cache.py", "cuda", "--rows", "2", "-o", "{out}/kv_cache.json"), 60),
        Step(
            "embedded model",
            (PYTHON, *EMBEDDED, "--device", "cuda", "--methods", "ar", "mc-sjd", "sjd2", "--windows", "32", "64", "--prompts", "8", "--timed", "2"),
            90,
        ),
        Step(
            "other tests",
            _pytest("tests", "--ignore=tests/fused", "--ignore=tests/kv_cache", processes=14),
            300,
            environment=(("OMP_NUM_THREADS", "1"), *few),
        ),
    )
    return ((INSTALL,), (INFO,), tests, *((step,) for step in timed))


def on_cpu() -> tuple[Stage, ...]:
    """The same steps, some tests for all of them, small shapes and tiny models."""
    tests: Stage = (
        Step("kernel tests", _pytest("tests/fused/test_denoise.py", "tests/fused/test_random.py"), 120, environment=(("TRITON_INTERPRET", "1"),)),
        Step("law tests on the GPU", _pytest("tests/law/test_slot_rules.py"), 120),
        *(
            Step(tool, (*SANITIZER, tool, PYTEST, "-q", "tests/kv_cache/test_cuda.py"), 120, needs="compute-sanitizer")
            for tool in ("memcheck", "racecheck")
        ),
        Step("compile kernels", _benchmark("fused_ops.py", "cpu", "--compile-only", "--window", "4", "--width", "16"), 60, parts=(_compile("40"),)),
    )
    small = ("--vocab", "300", "--window", "8", "--width", "64", "--all-rules-at", "300", "--repeats", "2")
    timed = (
        Step(
            "full size",
            _benchmark(
                "full_size.py", "cpu", "--small", "--windows", "1", "4", "--batches", "1", "2", "--iterations", "3", "--end-to-end", "4",
                "-o", "{out}/full_size.json",
            ),
            120,
        ),
        Step("fused ops", _benchmark("fused_ops.py", "cpu", *small, "-o", "{out}/fused_ops.json"), 120),
        Step("window attention", _benchmark("window_attention.py", "cpu", "--repeats", "2", "-o", "{out}/window_attention.json"), 120),
        Step("kv cache", _benchmark("kv_cache.py", "cpu", "--layers", "1", "--repeats", "2", "-o", "{out}/kv_cache.json"), 120),
        Step(
            "embedded model",
            (PYTHON, *EMBEDDED, "--device", "cpu", "--methods", "ar", "jacobi", "--windows", "16", "--prompts", "2", "--timed", "1"),
            120,
        ),
        Step("other tests", _pytest("tests/ops/test_backends.py", "tests/kv_cache/test_cuda.py"), 120),
    )  # fmt: skip
    return ((INSTALL,), (INFO,), tests, *((step,) for step in timed))


STAGES = {"cuda": on_gpu, "cpu": on_cpu}
NAMES = tuple(step.name for stage in on_gpu() for step in stage)
