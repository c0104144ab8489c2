"""The GPU suite on a CPU: its plumbing, tried before a GPU is."""

from __future__ import annotations

import importlib
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import gpu_steps
import gpu_suite
import pytest
from gpu_steps import Step

#: Steps that time something; their results are files of these names.
TIMED = ("full size", "fused ops", "window attention", "kv cache", "embedded model")


def suite(out: Path, *arguments: str) -> tuple[int, dict]:
    code = gpu_suite.main([str(out), "--device", "cpu", *arguments])
    return code, json.loads((out / "suite.json").read_text())


def python(code: str, name: str = "info", **settings) -> Step:
    return Step(name, (sys.executable, "-c", code), **{"seconds": 60} | settings)


def steps(monkeypatch, *stages) -> None:
    monkeypatch.setitem(gpu_steps.STAGES, "cpu", lambda: stages)


def test_steps_leave_conditions_outcomes_logs_and_a_summary(tmp_path, monkeypatch, capsys):
    steps(
        monkeypatch,
        (python("print('hello', '{scratch}')"),),
        (python("raise SystemExit(3)", "memcheck"), python("pass", "racecheck", needs="no-such-program")),
    )
    code, report = suite(tmp_path / "out")
    assert code == 1
    assert report["conditions"]["torch"]
    assert {name: step["outcome"] for name, step in report["steps"].items()} == {
        "info": "passed",
        "memcheck": "failed: exit code 3",
        "racecheck": "not run: no-such-program is not on this machine",
    }
    log = (tmp_path / "out" / "logs.txt").read_text()
    assert "hello /" in log
    assert not Path(log.split("hello ")[1].split()[0]).exists(), "scratch is thrown away"
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert summary.splitlines()[-1].startswith("targets: ")
    assert capsys.readouterr().out.endswith(summary)


@pytest.fixture
def quick(monkeypatch) -> None:
    """Without the two processes that ask for conditions and targets, seconds each; the test above has them."""
    monkeypatch.setattr(gpu_suite, "facts", lambda device, environment: {"device": device})
    monkeypatch.setattr(gpu_suite.Suite, "summary", lambda suite: "")


@pytest.mark.usefixtures("quick")
def test_steps_of_a_stage_run_at_the_same_time_and_a_slow_one_is_cut_off_with_its_children(tmp_path, monkeypatch):
    mark = tmp_path / "alive"
    child = f"import time; time.sleep(6); open({str(mark)!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    began = time.monotonic()
    steps(monkeypatch, (python(parent, "memcheck", seconds=2), python("import time; time.sleep(1)", "racecheck")))
    code, report = suite(tmp_path / "out")
    assert code == 1
    assert report["steps"]["memcheck"]["outcome"] == "cut off after 2 s"
    assert report["steps"]["racecheck"]["outcome"] == "passed"
    time.sleep(max(0.0, began + 9 - time.monotonic()))
    assert not mark.exists()


@pytest.mark.usefixtures("quick")
def test_what_does_not_fit_into_the_time_is_not_begun(tmp_path, monkeypatch):
    steps(monkeypatch, (python("pass"),))
    code, report = suite(tmp_path / "out", "--seconds", "20")
    assert code == 0
    assert report["steps"]["info"]["outcome"] == "not run: no time left"


@pytest.mark.usefixtures("quick")
def test_only_and_skip_choose_steps(tmp_path, monkeypatch):
    steps(monkeypatch, (python("pass", "install"),), (python("pass"), python("pass", "memcheck")))
    assert list(suite(tmp_path / "a", "--skip", "install")[1]["steps"]) == ["info", "memcheck"]
    assert list(suite(tmp_path / "b", "--only", "memcheck")[1]["steps"]) == ["memcheck"]


@pytest.mark.usefixtures("quick")
def test_after_an_installation_that_failed_the_sources_are_used(tmp_path, monkeypatch):
    show = python("import os; print('path', os.environ['PYTHONPATH'])")
    steps(monkeypatch, (python("raise SystemExit(1)", "install"),), (show,))
    code, report = suite(tmp_path / "out")
    assert code == 1
    assert report["steps"]["info"]["outcome"] == "passed"
    root = Path(gpu_suite.ROOT)
    assert f"path {root}:{root / 'python'}\n" in (tmp_path / "out" / "logs.txt").read_text()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_both_kinds_have_the_same_steps_and_name_files_that_are_there(device):
    found = [step for stage in gpu_steps.STAGES[device]() for step in stage]
    assert [step.name for step in found] == list(gpu_steps.NAMES)
    for step in found:
        for word in (*step.command, *(word for part in step.parts for word in part)):
            if word.startswith(("tests/", "benchmarks/")):
                assert (gpu_suite.ROOT / word).exists(), word
    # What is timed is timed by itself.
    assert all(len(stage) == 1 for stage in gpu_steps.STAGES[device]() if stage[0].name in TIMED)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_scripts_take_the_arguments_of_their_steps(device, monkeypatch, capsys):
    """Of the GPU's commands as much as can be had without one."""
    seen = set()
    for step in (step for stage in gpu_steps.STAGES[device]() for step in stage):
        script = next((word for word in step.command if word.startswith("benchmarks/")), None)
        if script is None:
            continue
        module = importlib.import_module(Path(script).stem)
        for part in step.parts:
            words = [*step.command[step.command.index(script) + 1 :], *part]
            monkeypatch.setattr(sys, "argv", [script, *words, "--help"])
            with pytest.raises(SystemExit) as ended:
                module.main()
            assert ended.value.code == 0, capsys.readouterr().err
        seen.add(module.__name__)
    assert seen == {name.replace(" ", "_") for name in TIMED}


@pytest.mark.full
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_whole_suite_on_a_cpu(tmp_path):
    code, report = suite(tmp_path / "out", "--skip", "install")
    assert code == 0, (tmp_path / "out" / "logs.txt").read_text()[-3000:]
    outcomes = {name: step["outcome"] for name, step in report["steps"].items()}
    assert list(outcomes) == [name for name in gpu_steps.NAMES if name != "install"]
    assert {name for name, outcome in outcomes.items() if outcome != "passed"} <= {"memcheck", "racecheck"}
    for name in TIMED:
        assert json.loads((tmp_path / "out" / f"{name.replace(' ', '_')}.json").read_text())["conditions"]["commit"]
    assert len(list((tmp_path / "out").iterdir())) == len(TIMED) + 3, "and conditions, logs and summary"
