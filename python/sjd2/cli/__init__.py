"""The ``sjd2`` command."""

from .main import main

__all__ = ["main"]
