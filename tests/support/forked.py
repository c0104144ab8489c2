"""Processes that can be ended from outside, or that work together, and that need not import what takes seconds: all are forked from one that has.

Where it matters how a process starts (its imports, its environment, ``torchrun`` itself), tests start one as users do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sjd2_kernels

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["sjd2.cli", "sjd2.training", "sjd2.tiny_scenes.recipe"])


def _start_server() -> None:
    """The process that is forked; told not to look for packages in the working folder, where the sources are, without what is compiled."""
    with patch.dict(os.environ, {"PYTHONSAFEPATH": "1"}):
        forkserver.ensure_running()


def _call(function: Callable[..., Any], arguments: tuple, folder: Path, environment: dict[str, str], package: str) -> None:
    for name, stream in (("stdout", 1), ("stderr", 2)):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    os.environ.pop("PYTHONSAFEPATH")
    os.environ.update(environment)
    if sjd2_kernels.__file__ != package:
        raise RuntimeError(f"expected to import {package}, got {sjd2_kernels.__file__}")
    # Where tests run in the background of a script, SIGINT is ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = function(*arguments)
    sys.exit(code if isinstance(code, int) else 0)


class Forked:
    """``function(*arguments)``, which another module has, in a process of its own; what it prints goes into files in ``folder``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, folder: Path, environment: dict[str, str] | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        _start_server()
        given = (function, arguments, folder, environment or {}, sjd2_kernels.__file__)
        self._process = _context.Process(target=_call, args=given, daemon=True)
        self._process.start()

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def returncode(self) -> int | None:
        """None while it runs; −9 after SIGKILL."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"still running after {timeout} s: {self.stderr}")
        return self._process.exitcode


def in_ranks(function: Callable[..., Any], *arguments: Any, folder: Path, processes: int = 2, timeout: float = 300) -> list[Forked]:
    """The function in several processes with the environment that ``torchrun`` gives them; all have ended well, or this raises."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = str(processes)
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "OMP_NUM_THREADS": "1"}
    ranks = [
        Forked(function, *arguments, folder=folder / str(rank), environment=group | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    end = time.monotonic() + timeout
    try:
        while any(rank.returncode is None for rank in ranks) and not any(rank.returncode for rank in ranks) and time.monotonic() < end:
            time.sleep(0.02)
        failed = [f"rank {place}, exit code {rank.returncode}: {rank.stderr}" for place, rank in enumerate(ranks) if rank.returncode != 0]
        if failed:
            raise RuntimeError("\n".join(failed))
    finally:
        for rank in ranks:
            rank.send_signal(signal.SIGKILL)
    return ranks
