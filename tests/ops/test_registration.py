"""The registered ops on their definitions."""

from __future__ import annotations

import subprocess
import sys

import torch

from support.registration import compile_in_full, opchecks


def test_opcheck():
    opchecks("torch", torch.device("cpu"))


def test_compiles_into_one_graph():
    compile_in_full("torch", torch.device("cpu"))


def test_without_triton_everything_but_its_back_end_works():
    code = """
import sys
sys.modules["triton"] = None
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else found(name, *rest)
import torch
from sjd2_kernels import LogitsProcessing, sample
zeros = torch.zeros(1, dtype=torch.int64)
arguments = dict(seeds=zeros, iteration=zeros, position=zeros[:, None])
print(sample(torch.tensor([[[0.0, 30.0]]]), None, LogitsProcessing.create(1), **arguments).item())
try:
    sample(torch.zeros(1, 1, 2), None, LogitsProcessing.create(1), backend="triton", **arguments)
except RuntimeError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout == "1\nbackend: sample cannot run on 'triton' here: Triton is not installed\n", out.stderr
