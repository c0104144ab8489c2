"""``sample``: one draw per row from raw logits."""

from .op import sample

__all__ = ["sample"]
