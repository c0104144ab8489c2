"""What README and docs say: links and named files are there, tables and plots are those of the stored results, and no figure is elsewhere."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import advance
import pytest
from PIL import Image

import ablation_plots
import tables
from sjd2 import PRESETS
from support.pages import pages

ROOT = Path(__file__).parents[2]
PAGES = pages(ROOT)

_UNITS = r"\s?(?:×|%|ms|µs|s|[kKMGT]i?B(?:/s)?|dB|nats|seconds?|minutes?|hours?)(?![\w/])"
#: A number that looks measured: with a unit of time, size, speed or share.
FIGURE = re.compile(rf"(?<![\w.])\d[\d.,]*(?: to [\d.]+)?(?:{_UNITS}|\s(?:times|tokens per forward)\b)")
#: Figures that no command of ours wrote. Whatever else a page says is in a table that a command writes.
KNOWN = {
    "docs/batch.md": {"80 GB"},  # what a GPU is sold with
    "docs/tuning.md": {"3 %"},  # a default
    "docs/kernels.md": {"16 MB"},  # tests/fused/test_verify.py asserts it
    # Published: every row of the table names its paper.
    "docs/comparison.md": {
        "2.23×", "2.1×", "4.02×", "2.63×", "4.21×", "4.18×", "4.51×", "3.80×", "5.6×", "2.54×", "2.5 s", "2 to 7×", "2 to 3×", "1.30 to 1.49×",
    },
}  # fmt: skip


def _text(page: str) -> str:
    return (ROOT / page).read_text()


def _without_blocks(text: str) -> str:
    return re.sub(r"^    .*$", "", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE)


def _prose(page: str) -> str:
    """Without what commands write, code, and where links lead."""
    text = re.sub(r"<!-- table \w+ -->.*?<!-- end -->", "", _text(page), flags=re.DOTALL)
    return re.sub(r"`[^`\n]*`|\]\([^)]*\)", "", _without_blocks(text))


def _anchors(path: Path) -> set[str]:
    """Of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", _without_blocks(path.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_tables_agree_with_the_stored_results(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/model_card.md"])  # a command writes all of the card
def test_no_figure_stands_outside_a_table_that_a_command_writes(page):
    found = {match[0].strip() for match in FIGURE.finditer(_prose(page))} - {"95 %"}  # the level of every interval
    assert found == KNOWN.get(page, set())


def test_prose_is_left_where_blocks_are_taken_out():
    assert "warm-up, then a cosine" in _prose("docs/tuning.md")
    assert "In Python" in _prose("docs/tuning.md")
    assert "sjd2 finetune --own-drafts" not in _prose("docs/tuning.md")


def test_a_figure_in_prose_would_be_seen():
    for figure in ("2.6×", "12 %", "3.5 ms", "1.5 GiB", "7.62 tokens per forward", "30 times", "0.34 s", "4,657 seconds"):
        assert FIGURE.search(f"it takes {figure}, we found"), figure
    for number in ("sm_80", "W = 64", "float32", "768²", "2410.01699", "8 images", "1,000 rows", "7B"):
        assert not FIGURE.search(f"with {number} of them"), number


def test_the_methods_table_agrees_with_the_presets():
    rows = re.findall(r"^\| `([^`]+)` \|[^|]*\| \**(tokens|law|no)\b", _text("docs/methods.md"), flags=re.MULTILINE)
    assert {name: "none" if exact == "no" else exact for name, exact in rows} == {name: preset.exact for name, preset in PRESETS.items()}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_files_exist(page):
    text = _text(page)
    for name, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)(?:#([^)]*))?\)", _without_blocks(text)):
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), name
        # The headings of the reference are made of docstrings; the site's own build looks at those links.
        assert not anchor or anchor in _anchors(path), f"{name}#{anchor}"
        # The site has what is under docs and nothing else.
        assert not page.startswith("docs/") or path.resolve().is_relative_to(ROOT / "docs"), name
    for name in re.findall(r"`((?:tests|benchmarks|docs|python|sjd2_kernels|csrc)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_that_are_named_exist(page):
    targets = set(re.findall(r"^([\w-]+):", _text("Makefile"), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)[^`]*`", _text(page))) <= targets


def test_every_picture_of_the_docs_is_shown():
    images = ROOT / "docs" / "images"
    shown = {match for page in PAGES for match in re.findall(r"\((?:docs/)?images/([\w./-]+)", _text(page))}
    assert {str(path.relative_to(images)) for path in images.rglob("*.*")} == shown


def test_plots_are_drawn_from_the_stored_results():
    def stored(name: str) -> dict:
        return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())

    drawn = ablation_plots.plots(stored("ablations")) + advance.plots(stored("advance"))
    assert len(drawn) >= 4
    for name, _, data in drawn:
        with Image.open(ROOT / "docs" / "images" / f"{name}.png") as image:
            assert image.info.get("Source") == ablation_plots.source(data), f"{name}.png: `python benchmarks/ablation_plots.py`, `make advance`"
