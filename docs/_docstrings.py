"""For the documentation site: docstrings name things as Sphinx does (``:func:`verify```); Markdown shows the names alone."""

from __future__ import annotations

import re
from typing import Any

import griffe


class PlainRoles(griffe.Extension):
    """``:role:`name``` becomes ```name```, and ``~package.name`` its last part."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Every module, class, function and attribute that is read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":[a-z]+:`(?:~[\w.]*\.)?([^`]+)`", r"`\1`", obj.docstring.value)
