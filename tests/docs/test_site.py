"""The site builds strictly, without a network, and its pages fetch nothing."""

from __future__ import annotations

import importlib.util
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import sjd2
import sjd2_kernels

ROOT = Path(__file__).parents[2]

#: Elements that a browser fetches by themselves, and where they say from.
_FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "embed": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built as `make docs` does."""
    pytest.importorskip("mkdocs", reason="MkDocs is not installed: the extra `docs`")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(
        load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    )  # raises on any warning: a broken link, an anchor, a page that the navigation lacks, a name that is not there
    return folder


class _Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.fetched: list[str] = []
        self.tables = 0
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tables += tag == "table"
        self.names.add(found.get("id", ""))
        if tag in _FETCHED and found.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(found.get(_FETCHED[tag]) or "")


def test_no_page_fetches_anything_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text()
        assert [url for url in _Page(text).fetched if re.match(r"(?:https?:)?//", url)] == [], page
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", text), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import\s|url\()[\"']?(?:https?:)?//", sheet.read_text()), sheet


@pytest.mark.parametrize("page", ["sjd2", "exactness", "performance", "kv_cache", "models"])
def test_tables_between_comments_are_tables(site, page):
    written = re.findall(r"^\|[-|]+\|$", (ROOT / "docs" / f"{page}.md").read_text(), flags=re.MULTILINE)
    assert _Page((site / f"{page}.html").read_text()).tables == len(written) > 0


@pytest.mark.parametrize("package", [sjd2, sjd2_kernels])
def test_the_reference_has_every_public_name(site, package):
    """But constants and the version, which are told about where they are used."""
    documented = _Page((site / "api" / f"{package.__name__}.html").read_text()).names
    for name in package.__all__:
        if callable(getattr(package, name)):
            path = f"{package.__name__}.{name}"
            # A subpackage of the same name, such as `verify`, is not the function.
            assert (path if importlib.util.find_spec(path) is None else f"{path}.{name}") in documented
