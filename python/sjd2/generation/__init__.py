"""``sjd2.generate``: the decode loop behind Hugging Face's ``generate``."""

from .door import generate
from .output import GenerateOutput

__all__ = ["GenerateOutput", "generate"]
