"""The same batch on a local Ray cluster, one of whose actors dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from .test_batch import PROMPTS, batch, manifest, pictures

pytest.importorskip("ray")


def actors_running() -> list[int]:
    """Processes that decode, by the name that Ray gives them."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = process.read_bytes()
        except OSError:  # gone meanwhile
            continue
        if name.startswith(b"ray::") and b"MapWorker" in name:
            found.append(int(process.parent.name))
    return found


@pytest.mark.full
def test_two_actors_one_of_them_killed_make_the_pictures_of_one_process(tmp_path):
    lines = [json.dumps({"prompt": prompt}) for prompt in PROMPTS + PROMPTS] + ["{broken"]
    alone = ["--batch-size", "1"]
    assert batch(tmp_path, "one", lines, *alone) == 1
    killed = []

    def kill():
        """An actor, once there are pictures."""
        while not killed and not over.is_set():
            time.sleep(0.05)
            if list((tmp_path / "two").rglob("*.png")) and (actors := actors_running()):
                os.kill(actors[0], signal.SIGKILL)
                killed.append(actors[0])

    over = threading.Event()
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert batch(tmp_path, "two", lines, *alone, "--ray", "--actors", "2") == 1
    finally:
        over.set()
        killer.join()
    assert killed, "an actor was killed while it worked"
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one")
    one, two = ({row["id"]: (row["status"], row.get("tokens"), row.get("error")) for row in manifest(tmp_path / name)} for name in ("one", "two"))
    assert one == two
    assert len(manifest(tmp_path / "two")) == len(lines), "each prompt once"
