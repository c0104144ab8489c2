"""What was built for a model once, so that the next call of ``sjd2.generate`` need not build and check it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["kept"]

Adapter = TypeVar("Adapter")

#: Collections of a configuration that are larger than this (vocabularies) are known by being the same object.
_LARGE = 200

#: By model and by what was made: what it was made from, and its attributes but for the model, which would otherwise never be let go.
_made: WeakKeyDictionary[PreTrainedModel, dict[Any, tuple[Any, dict[str, Any]]]] = WeakKeyDictionary()


class _Same:
    """Equal to what holds the very same object."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]


def _state(value: Any) -> Any:
    """What changes when ``value``, of a configuration, does."""
    if isinstance(value, (Mapping, list, tuple)) and len(value) > _LARGE:
        return _Same(value), len(value)
    if isinstance(value, PretrainedConfig):
        return type(value), _state(vars(value))
    if isinstance(value, Mapping):
        return {name: _state(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_state(one) for one in value]
    return value if isinstance(value, (str, int, float, type(None))) else repr(value)


def _origin(model: PreTrainedModel, parts: tuple[Any, ...]) -> list[Any]:
    """What is looked at where something is made of ``model`` and ``parts``."""
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    known = [type(model), model.training, model.device, model.dtype, rows, _state(getattr(model, "hf_device_map", None))]
    processors = [(_Same(part), _Same(getattr(part, "tokenizer", None))) for part in parts if not isinstance(part, int)]
    return [*known, *processors, _state(model.config), _state(vars(model.generation_config))]


def kept(kind: type[Adapter], model: PreTrainedModel, *parts: Any) -> Adapter:
    """``kind(model, *parts)``, made anew only where the model, its configuration or a part is another than the last time.

    Args:
        kind: of adapter.
        model: is not kept alive by this.
        parts: processors, which are as long as the model is, and numbers.

    Raises:
        ValueError: see ``kind``.
    """
    origin, ours = _origin(model, parts), _made.setdefault(model, {})
    key = kind, *(part for part in parts if isinstance(part, int))
    if key not in ours or ours[key][0] != origin:
        make: Any = kind
        ours[key] = origin, {name: value for name, value in vars(make(model, *parts)).items() if name != "model"}
    found = object.__new__(kind)
    vars(found).update(ours[key][1], model=model)
    return found
