"""What the compiled kernels of ``verify`` and ``sample`` execute and load for an id, counted instruction by instruction without a GPU.

``python benchmarks/emulated_ops.py -o benchmarks/results/emulated_ops.json``, then ``python benchmarks/tables.py``. These are counts, and no times.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import triton
from emulator.kernels import compiled_kernels
from op_inputs import Window
from triton.backends.compiler import GPUTarget

from conditions import conditions
from sjd2_kernels import Purpose, Rule

#: Compute capability of an H100, and rows of logits: enough for slots of every kind.
CAPABILITY, WINDOW = 90, 8
VOCABULARIES = (1_024, 8_192, 16_384, 32_768, 65_536, 131_072, 184_622)


def count(vocab: int, op: str) -> list[dict]:
    """A row per kernel of one call, whose result is the definition's."""
    window = Window(1, WINDOW, vocab, torch.device("cpu"))
    redrawn = WINDOW
    with compiled_kernels(GPUTarget("cuda", CAPABILITY, 32)) as launches:
        if op == "verify":
            result = window.verify(Rule.COUPLED, "triton")
            redrawn, tokens = int((~result.kept).sum()), result.tokens
        else:
            tokens = window.sample(Purpose.DRAFT, "triton")
    expected = window.definition(Rule.COUPLED)[0] if op == "verify" else window.sample(Purpose.DRAFT, "torch")
    if not torch.equal(tokens, expected):
        raise SystemExit(f"{op} at V = {vocab}: the compiled kernels gave other tokens than the definition")
    ids = WINDOW * vocab
    return [
        {
            "op": op,
            "vocab": vocab,
            "kernel": row["kernel"],
            "programs": row["grid"][0] * row["grid"][1] / WINDOW,
            "threads": row["threads"],
            "instructions": 32 * sum(row["executed"].values()) / ids,
            "loaded": row["wanted"]["load"] / ids,
            "sectors": row["moved"]["load"] / ids,
            "redrawn": redrawn,
        }
        for row in launches.rows
    ]


def main() -> None:
    """Count every kernel at every vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES, metavar="V")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    kernels = [row for vocab in options.vocabularies for op in ("verify", "sample") for row in count(vocab, op)]
    facts = conditions("cpu") | {"triton": triton.__version__}
    results = {"conditions": facts, "capability": CAPABILITY, "window": WINDOW, "top_k": 2_048, "kernels": kernels}
    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
