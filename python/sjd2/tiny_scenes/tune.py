"""Tune TinyScenes on its own drafts: ``python -m sjd2.tiny_scenes.tune --base DIR -o DIR``, with the folder that ``train --export`` wrote.

It is ``sjd2 finetune --own-drafts`` on the prompts of training, with the settings that the shipped weights were made with, and what a shipped
folder holds besides: the classifier, and the log of the training before. Interrupted, it goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from ..files import write_atomically
from ..training import DraftSettings, FinetuneSettings, TuningNoise, finetune
from .judge import GarmentClassifier
from .prompts import training_prompts

__all__ = ["SETTINGS", "complete", "tune"]

#: Of the shipped weights.
SETTINGS = FinetuneSettings(
    noise=TuningNoise(windows=5, window=28), drafts=DraftSettings(), steps=1600, learning_rate=6e-4, bf16=True, save_every=100, eval_every=200
)
_LOG = "training_log.json"


def complete(base: Path, tuned: Path) -> None:
    """Add to the ``tuned`` folder what the ``base`` folder has and tuning does not write: the classifier, and the log of its training.

    Doing it twice changes nothing.
    """
    log, before = (json.loads((folder / _LOG).read_text()) for folder in (tuned, base))
    shutil.copyfile(base / GarmentClassifier.WEIGHTS_NAME, tuned / GarmentClassifier.WEIGHTS_NAME)
    if "tuning" not in log:
        write_atomically(tuned / _LOG, lambda scratch: scratch.write_text(json.dumps({**before, "tuning": log}, indent=1) + "\n"))


def tune(base: Path, output: Path, settings: FinetuneSettings = SETTINGS) -> None:
    """Tune the model in ``base``; ``output`` becomes a folder like it."""
    if (output / _LOG).is_file() and "tuning" in json.loads((output / _LOG).read_text()):
        print(f"{output} is finished")
        return
    finetune(training_prompts(), output, settings, model=base, report=lambda line: print(line, flush=True))
    complete(base, output)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sjd2.tiny_scenes.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, metavar="DIR", help="the model before tuning")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to be made")
    options = parser.parse_args()
    tune(options.base, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
