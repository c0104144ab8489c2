"""What ``torchrun`` starts for the tests: several commands after each other in the same processes, for to start them takes longer than they do.

    torchrun --nproc-per-node 2 launched.py '[[["finetune", …], null], [["finetune", …], 5]]'

With each command stands the step at which it is interrupted, if it is.
"""

from __future__ import annotations

import gc
import json
import sys
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


if __name__ == "__main__":
    gc.freeze()  # what was imported: each run of a trainer collects garbage, which would look at all of it
    codes = [run(arguments, step) for arguments, step in json.loads(sys.argv[1])]
    print(f"exit codes {codes}", flush=True)
