"""The key/value cache of the decoder."""

from .ragged import RaggedCache

__all__ = ["RaggedCache"]
