"""``verify``: the batched accept/reject test of speculative Jacobi decoding, and everything that follows from it."""

from .op import verify
from .records import Q_NONE, Q_POINT, Q_UNIFORM, LastForward, Rule, Verification

__all__ = ["Q_NONE", "Q_POINT", "Q_UNIFORM", "LastForward", "Rule", "Verification", "verify"]
