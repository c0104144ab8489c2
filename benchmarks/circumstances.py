"""What a result was measured under, in words."""

from __future__ import annotations

from collections.abc import Mapping


def circumstances(facts: Mapping[str, str], *, machine: bool = True) -> str:
    """A sentence of stored ``conditions``; without the ``machine`` where it has no part in the figures."""
    versions = f"PyTorch {facts['torch']}, Transformers {facts['transformers']}, commit {facts['commit']}."
    if not machine:
        return versions
    return f"{facts['device']}, {versions}" + ("" if "NVIDIA" in facts["device"] else " Not measured on a GPU.")
