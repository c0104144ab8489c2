"""What several processes do for the tests: decode with a model whose layers they share; or one alone, with a whole one. Tokens as JSON."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import sjd2
from sjd2 import TextToImagePipeline
from sjd2.training.processes import leave_processes

PROMPTS = ["a red coat on a yellow background", "a bag"]
CALLS = ({"method": "ar"}, {"method": "mc-sjd", "cache": "paged"}, {"method": "gs-sjd"}, {"method": "sjd2"})


def tokens(folder: Path, **options: Any) -> dict[str, Any]:
    """Of each call by both doors, and the share of the weights that lies here."""
    pipeline = TextToImagePipeline.from_pretrained(folder, dtype=torch.float64, **options)
    found: dict[str, Any] = {call["method"]: pipeline(PROMPTS, seed=1, window=None, **call).tokens.tolist() for call in CALLS}
    parameters = list(pipeline.adapter.model.parameters())
    here = sum((one.to_local() if isinstance(one, DTensor) else one).numel() for one in parameters)
    found["share"] = here / sum(one.numel() for one in parameters)
    if options.get("tp_plan"):
        try:
            pipeline(PROMPTS, window="auto")
        except ValueError as error:
            found["auto"] = str(error)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **options)
    ids = AutoTokenizer.from_pretrained(folder)(PROMPTS[0], return_tensors="pt").input_ids
    found["generate"] = sjd2.generate(model, input_ids=ids, method="mc-sjd", seed=1, do_sample=True, max_new_tokens=16).tolist()
    return found


def print_tokens(folder: Path) -> None:
    """Those of a process that shares the model with others."""
    warnings.simplefilter("ignore")
    print(json.dumps(tokens(folder, tp_plan="auto")), flush=True)
    leave_processes()
