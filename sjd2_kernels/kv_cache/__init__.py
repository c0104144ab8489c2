"""KV-cache ops on static buffers with one length per row."""

from .op import kv_append

__all__ = ["kv_append"]
