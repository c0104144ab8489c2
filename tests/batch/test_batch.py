"""A folder of pictures: whole, once each, whatever happens on the way."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from sjd2.batch import BatchFolder, Job
from sjd2.cli import main
from sjd2.files import write_atomically
from support.forked import Forked

COAT, BOOT, BAG = "a red coat on a yellow background", "a teal boot on a pink background", "a black bag on a blue background"
PROMPTS = [COAT, BOOT, BAG, COAT]
QUICK = ["--method", "mc-sjd", "--window", "16", "--quiet"]


def prompts(tmp_path: Path, lines=PROMPTS) -> str:
    path = tmp_path / ("prompts.jsonl" if lines and lines[0].startswith("{") else "prompts.txt")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def batch(tmp_path, name, lines=PROMPTS, *options) -> int:
    return main(["batch", prompts(tmp_path, lines), "-o", str(tmp_path / name), *QUICK, *options])


def manifest(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("manifest*.jsonl")) for line in path.read_text().splitlines()]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> tuple[dict[str, bytes], dict[str, list[int]]]:
    """Pictures and tokens of the prompts, made one at a time."""
    folder = tmp_path_factory.mktemp("alone")
    assert batch(folder, "out", PROMPTS, "--batch-size", "1") == 0
    return pictures(folder / "out"), {row["id"]: row["tokens"] for row in manifest(folder / "out")}


def test_every_prompt_has_a_picture_and_a_row(tmp_path, expected):
    files, tokens = expected
    assert batch(tmp_path, "out", PROMPTS, "--batch-size", "1") == 0
    rows = manifest(tmp_path / "out")
    assert pictures(tmp_path / "out") == files
    assert [row["id"] for row in rows] == ["0000000-0", "0000001-0", "0000002-0", "0000003-0"]
    for row in rows:
        assert row["status"] == "done"
        assert row["prompt"] == PROMPTS[row["line"]]
        assert row["tokens"] == tokens[row["id"]]
        assert row["count"] == 256 > row["forwards"]
        assert Image.open(tmp_path / "out" / row["file"]).size == (32, 32)
    assert rows[0]["tokens"] != rows[3]["tokens"], "the same prompt again has another seed"


def test_batches_and_shards_give_the_same_tokens(tmp_path, expected):
    _, tokens = expected
    assert batch(tmp_path, "together", PROMPTS, "--batch-size", "3", "--dtype", "float64") == 0
    for index in range(3):
        assert batch(tmp_path, "shards", PROMPTS, "--batch-size", "2", "--dtype", "float64", "--shard", f"{index}/3") == 0
    together, shards = ({row["id"]: row["tokens"] for row in manifest(tmp_path / name)} for name in ("together", "shards"))
    assert together == shards
    assert together.keys() == tokens.keys()


def test_shards_may_begin_at_the_same_moment(tmp_path):
    """All of them find no folder, and one of them makes it."""
    settings = {"a": list(range(1000))}
    errors = []

    def begin(index):
        try:
            with BatchFolder(tmp_path / "out", (index, 16)).held(settings):
                barrier.wait()  # nobody leaves before all have begun
        except Exception as error:
            errors.append(error)

    barrier = threading.Barrier(16, timeout=30)
    threads = [threading.Thread(target=begin, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert json.loads((tmp_path / "out" / "run.json").read_text()) == settings


def test_a_finished_batch_does_nothing_and_a_lost_picture_is_made_again(tmp_path, expected, capsys):
    files, _ = expected
    assert batch(tmp_path, "out", PROMPTS, "--batch-size", "1") == 0
    before = (tmp_path / "out" / "manifest.jsonl").read_bytes()
    assert batch(tmp_path, "out", PROMPTS, "--batch-size", "1") == 0
    assert (tmp_path / "out" / "manifest.jsonl").read_bytes() == before
    (tmp_path / "out" / next(iter(files))).unlink()
    assert batch(tmp_path, "out", PROMPTS, "--batch-size", "1") == 0
    assert pictures(tmp_path / "out") == files
    assert sorted(row["id"] for row in manifest(tmp_path / "out")) == [f"000000{line}-0" for line in range(4)]


def test_a_run_that_is_killed_three_times_ends_with_the_same_pictures(tmp_path, expected):
    files, _ = expected
    command = ["batch", prompts(tmp_path), "-o", str(tmp_path / "out"), *QUICK, "--batch-size", "1"]
    chance = random.Random(0)
    for kill in range(3):
        process = Forked(main, command, folder=tmp_path / "printed")
        # Not before it has begun anew, so that each kill hits work: a moment after the next picture, or the first.
        deadline, had = time.monotonic() + 120, len(list((tmp_path / "out").rglob("*.png")))
        while process.returncode is None and time.monotonic() < deadline and len(list((tmp_path / "out").rglob("*.png"))) < min(had + 1, kill + 1):
            time.sleep(0.01)
        time.sleep(chance.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert main(command) == 0  # the fourth is not killed, and needs no process of its own
    assert pictures(tmp_path / "out") == files
    assert sorted(row["id"] for row in manifest(tmp_path / "out")) == [f"000000{line}-0" for line in range(4)]
    assert not list((tmp_path / "out").rglob(".*partial*"))


def test_what_a_kill_left_of_a_row_is_removed(tmp_path):
    folder = BatchFolder(tmp_path / "out")
    with folder.held({"a": 1}):
        folder.record({"id": "0000000-0", "status": "failed", "error": "x"})
        with folder.manifest.path.open("ab") as file:
            file.write(b'{"id": "00000')
    with folder.held({"a": 1}):
        assert folder.recorded() == {"0000000-0": "failed"}
        folder.record({"id": "0000001-0", "status": "failed", "error": "y"})
    assert [row["id"] for row in folder.manifest.rows()] == ["0000000-0", "0000001-0"]


def test_a_prompt_that_fails_is_recorded_and_stops_nothing(tmp_path, capsys):
    lines = [
        json.dumps({"prompt": PROMPTS[0]}),
        "{broken",
        json.dumps({"prompt": PROMPTS[1], "guidance_scale": 4.0}),
        json.dumps({"prompt": PROMPTS[2], "method": "magic"}),
        json.dumps({"prompt": PROMPTS[2], "temperature": -1}),
    ]
    assert batch(tmp_path, "out", lines) == 1
    rows = {row["line"]: row for row in manifest(tmp_path / "out")}
    assert {line: row["status"] for line, row in rows.items()} == {0: "done", 1: "failed", 2: "done", 3: "failed", 4: "failed"}
    assert rows[1]["error"].startswith("line 2: Expecting property name")
    assert rows[2]["settings"] == {"guidance_scale": 4.0}
    assert rows[3]["error"].startswith("method: expected one of ar")
    assert rows[4]["error"].startswith("temperature: expected a finite number >= 0, got -1")
    assert batch(tmp_path, "out", lines) == 1, "what failed is not forgotten"
    assert len(manifest(tmp_path / "out")) == 5
    assert batch(tmp_path, "out", lines, "--retry-failed") == 1
    assert len(manifest(tmp_path / "out")) == 5


def test_one_bad_prompt_of_a_group_does_not_take_the_others_with_it(tmp_path, monkeypatch):
    """An error that comes while a batch is decoded, whose owner nobody knows."""
    from sjd2.batch import worker

    decode = worker.Worker._decode

    def poisoned(self, group, finished):
        if any(job.line == 2 for job in group):
            raise FloatingPointError("logits: expected finite values")
        decode(self, group, finished)

    monkeypatch.setattr(worker.Worker, "_decode", poisoned)
    assert batch(tmp_path, "out") == 1
    assert {row["line"]: row["status"] for row in manifest(tmp_path / "out")} == {0: "done", 1: "done", 2: "failed", 3: "done"}


def test_a_full_disk_ends_the_run_and_leaves_nothing_half_written(tmp_path, monkeypatch, capsys, expected):
    from sjd2.batch import worker

    written = []

    def full(path, write):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        write_atomically(path, write)

    monkeypatch.setattr(worker, "write_atomically", full)
    assert batch(tmp_path, "out", PROMPTS, "--batch-size", "1") == 1
    assert "error: [Errno 28] No space left on device" in capsys.readouterr().err
    assert len(manifest(tmp_path / "out")) == len(pictures(tmp_path / "out")) == 2
    monkeypatch.setattr(worker, "write_atomically", write_atomically)

    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert batch(tmp_path, "out", PROMPTS, "--batch-size", "1") == 1
    assert len(manifest(tmp_path / "out")) == 2, "a row that has no room is not there in part"
    monkeypatch.undo()
    assert batch(tmp_path, "out", PROMPTS, "--batch-size", "1") == 0
    assert pictures(tmp_path / "out") == expected[0]


def test_too_large_a_batch_ends_the_run_with_a_way_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sjd2.decoding.memory.available", lambda device: 4_000_000)
    assert batch(tmp_path, "out", PROMPTS, "--batch-size", "4") == 1
    assert "error: batch_size: 4 images together need about" in capsys.readouterr().err
    assert manifest(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "magic"], "method: expected one of"),
        (["--temperature", "-1"], "temperature: expected"),
        (["--shard", "3/3"], "--shard: expected I/N with I from 0 to N - 1, got '3/3'"),
        (["--batch-size", "0"], "--batch-size: expected a whole number >= 1, got 0"),
        (["--num-images", "0"], "--num-images: expected a whole number >= 1, got 0"),
    ],
)
def test_what_no_prompt_could_use_is_an_error_before_anything_is_written(tmp_path, capsys, options, message):
    assert batch(tmp_path, "out", PROMPTS, *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_empty_file_other_settings_and_a_second_process_are_errors(tmp_path, capsys):
    assert batch(tmp_path, "out", [""]) == 1
    assert "prompts: expected at least one, got none in" in capsys.readouterr().err
    folder = BatchFolder(tmp_path / "out")
    with folder.held({"seed": 0}):
        assert batch(tmp_path, "out", PROMPTS) == 1
        assert f"--output: another process is at work in {tmp_path / 'out'}" in capsys.readouterr().err
    assert batch(tmp_path, "out", PROMPTS) == 1
    assert "holds pictures made with other settings" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert batch(tmp_path, "file") == 1
    assert "--output: expected a folder" in capsys.readouterr().err


def test_pictures_by_another_model_are_not_mixed_in(tmp_path, capsys):
    assert batch(tmp_path, "out", PROMPTS[:2], "--batch-size", "1") == 0
    path = tmp_path / "out" / "manifest.jsonl"
    first, _ = path.read_text().splitlines()
    path.write_text(json.dumps(json.loads(first) | {"model": "another"}) + "\n")
    assert batch(tmp_path, "out", PROMPTS[:2], "--batch-size", "1") == 1
    assert "were made by a model with fingerprint another" in capsys.readouterr().err


def test_a_job_has_a_place(tmp_path):
    assert BatchFolder(tmp_path).picture(Job(12_345, 2)) == Path("images/0012/0012345-2.png")
    assert BatchFolder(tmp_path, (1, 4)).manifest.path.name == "manifest-1-of-4.jsonl"


def test_an_attention_that_cannot_be_used_ends_the_run_and_no_prompt_fails(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red coat on a yellow background\n")
    command = ["batch", str(prompts), "-o", str(tmp_path / "pictures"), "--device", "cpu", "--quiet"]
    assert main([*command, "--attention", "triton"]) != 0
    assert "attention: expected one that can be used here, got 'triton'" in capsys.readouterr().err
    assert main([*command, "--attention", "auto"]) != 0
    assert "--attention: expected one of model, triton, flex, flash, got 'auto'" in capsys.readouterr().err
    assert not (tmp_path / "pictures" / "manifest.jsonl").exists() or not (tmp_path / "pictures" / "manifest.jsonl").read_text()
