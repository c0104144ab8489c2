"""Options that docs/bench.md names are there; its code is run by ``tests/docs/test_blocks.py``."""

from __future__ import annotations

import re
from pathlib import Path

from sjd2.cli.main import _parser


def test_options_named_are_there(request):
    text = (Path(request.config.rootpath) / "docs" / "bench.md").read_text()
    help_text = _parser()._subparsers._group_actions[0].choices["bench"].format_help()
    options = {option for option in re.findall(r"--[a-z][a-z-]+", text) if not option.startswith("--benchmark-")}
    assert len(options) > 8
    assert all(option in help_text for option in options), options
