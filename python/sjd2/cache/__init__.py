"""The key/value caches of the decoder."""

from .paged import PagedCache
from .ragged import RaggedCache, rotary_positions

__all__ = ["CACHES", "PagedCache", "RaggedCache", "resolve_cache", "rotary_positions"]

#: Caches by the name given to ``cache=`` and ``--cache``. They give the same tokens.
CACHES: dict[str, type[RaggedCache]] = {"ragged": RaggedCache, "paged": PagedCache}


def resolve_cache(name: str) -> type[RaggedCache]:
    """The class of the cache called ``name``.

    Raises:
        ValueError: an unknown name.
    """
    if name not in CACHES:
        raise ValueError(f"cache: expected one of {', '.join(CACHES)}, got {name!r}")
    return CACHES[name]
