"""What is read from a file of prompts: every usable line once, and every other as a failure."""

from __future__ import annotations

import json

import pytest

from sjd2.batch import derived_seed, read_jobs, shard_of


def jobs(tmp_path, name, content, **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_jobs(path, **options))


def test_text_lines_are_prompts_and_keep_their_numbers(tmp_path):
    found = jobs(tmp_path, "p.txt", "a fox\n\n  a hen \na fox\n")
    assert [(job.line, job.prompt, job.id) for job in found] == [(0, "a fox", "0000000-0"), (2, "a hen", "0000002-0"), (3, "a fox", "0000003-0")]
    assert len({job.seed for job in found}) == 3, "the same prompt on another line is another picture"


def test_seeds_depend_on_prompt_and_place_alone(tmp_path):
    together = jobs(tmp_path, "p.txt", "a\nb\nc\nd\n", num_images=2)
    assert {job.seed for job in together if job.line == 2} == {derived_seed(0, 2, 0, "c"), derived_seed(0, 2, 1, "c")}
    assert derived_seed(0, 2, 0, "c") == 2794931679071011363, "seeds stay what they were when the package changes"
    assert all(0 <= job.seed < 2**63 for job in together)
    parts = [list(shard_of(together, index, 3)) for index in range(3)]
    assert sorted((job for part in parts for job in part), key=lambda job: job.id) == together
    assert {job.seed for job in jobs(tmp_path, "p.txt", "a\nb\n", seed=1)}.isdisjoint(job.seed for job in together)


def test_settings_of_a_line(tmp_path):
    lines = [
        {"prompt": "a", "seed": 5, "guidance_scale": 4, "window": 32, "tag": "colour"},
        {"text": "b", "height": 64, "top_p": 0.9, "include": [{"class": "hen"}]},
    ]
    first, again, second, _ = jobs(tmp_path, "p.jsonl", "\n".join(map(json.dumps, lines)), num_images=2)
    assert (first.prompt, first.seed, again.seed) == ("a", 5, 6)
    assert first.settings == {"guidance_scale": 4, "window": 32}
    assert first.extra == {"tag": "colour"}
    assert (second.prompt, second.settings, second.extra) == ("b", {"height": 64, "top_p": 0.9}, {"include": [{"class": "hen"}]})


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{", "line 2: Expecting property name"),
        ("[1]", r'line 2: expected an object such as {"prompt": "…"}, got \[1\]'),
        ('{"text": 3}', "line 2: prompt: expected text, got 3"),
        ('{"prompt": " "}', "line 2: prompt: expected text, got ' '"),
        ('{"prompt": "a", "seed": -1}', "line 2: seed: expected a whole number"),
        ('{"prompt": "a", "top_k": 2.5}', "line 2: top_k: expected int, got 2.5"),
        ('{"prompt": "a", "window": true}', "line 2: window: expected int, got True"),
        ('{"prompt": "a", "window": "auto"}', "line 2: window: expected int, got 'auto'"),
        (b"\xff\xfe", "line 2: 'utf-8' codec can't decode"),
    ],
)
def test_a_line_that_cannot_be_used_has_failed_and_the_others_are_there(tmp_path, line, error):
    content = b'{"prompt": "a"}\n' + (line if isinstance(line, bytes) else line.encode()) + b'\n{"prompt": "c"}\n'
    first, bad, last = jobs(tmp_path, "p.jsonl", content)
    assert (first.prompt, last.prompt, last.line) == ("a", "c", 2)
    assert bad.prompt is None
    import re

    assert re.match(error, bad.error)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"prompt": ["a", None, "c"], "guidance_scale": [4.0, None, None], "source": ["x", "y", "z"]})
    parquet.write_table(table, tmp_path / "p.parquet")
    first, bad, last = read_jobs(tmp_path / "p.parquet")
    assert (first.prompt, first.settings, first.extra) == ("a", {"guidance_scale": 4.0}, {"source": "x"})
    assert bad.error == "line 2: prompt: expected text, got None"
    assert (last.prompt, last.line, last.settings) == ("c", 2, {})


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"prompts: .* is no file; expected a \.txt, \.jsonl or \.parquet file"):
        read_jobs(tmp_path / "none.txt")
    (tmp_path / "p.csv").touch()
    with pytest.raises(ValueError, match=r"prompts: expected a \.txt, \.jsonl or \.parquet file, got .*p\.csv"):
        read_jobs(tmp_path / "p.csv")
