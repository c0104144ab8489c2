"""Several commands after each other in the same processes, for to form a group takes longer than they do.

With each command stands the step at which it is interrupted, if it is.
"""

from __future__ import annotations

import gc
from unittest.mock import patch

from sjd2.cli import main
from sjd2.training.run import Report


def interrupting(step: int | None):
    """``Report.on_log`` that every process is interrupted by when it logs the loss of this step."""
    reported = Report.on_log

    def on_log(self, args, state, control, logs=None, **kwargs):
        reported(self, args, state, control, logs=logs, **kwargs)
        if state.global_step == step and "loss" in state.log_history[-1]:
            raise KeyboardInterrupt

    return patch.object(Report, "on_log", on_log)


def run(arguments: list[str], step: int | None) -> int:
    """The command's exit code."""
    with interrupting(step):
        return main(arguments)


def run_all(commands: list[tuple[list[str], int | None]]) -> None:
    """Print the exit codes of the commands."""
    gc.freeze()  # what was imported: each run of a trainer collects garbage, which would look at all of it
    print(f"exit codes {[run(arguments, step) for arguments, step in commands]}", flush=True)
