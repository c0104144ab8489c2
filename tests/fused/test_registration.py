"""The registered ops on the Triton back-end."""

from __future__ import annotations

from support.registration import compile_in_full, opchecks


def test_opcheck(device):
    opchecks("triton", device)


def test_compiles_into_one_graph(device):
    compile_in_full("triton", device)
