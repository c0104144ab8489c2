"""The ops beside their peers: what runs, what cannot, and peers' kernels called as their sources say."""

from __future__ import annotations

import csv
import json
import sys
from functools import partial
from types import ModuleType

import fused_ops
import op_peers
import pytest
import torch
from op_inputs import Window

from sjd2_kernels.compiled import obstacle

SMALL = [
    "--device",
    "cpu",
    "--vocab",
    "60",
    "--batch",
    "2",
    "--window",
    "5",
    "--width",
    "12",
    "--all-rules-at",
    "60",
    "--compiled-at",
    "--repeats",
    "3",
]


def run(tmp_path, *arguments) -> tuple[int, list[dict]]:
    code = fused_ops.main([*SMALL, *arguments, "-o", str(tmp_path / "ops.json"), "--csv", str(tmp_path / "ops.csv")])
    return code, json.loads((tmp_path / "ops.json").read_text())["rows"]


def test_every_op_is_timed_by_its_definition_and_what_is_compiled_for_a_cpu(tmp_path):
    code, rows = run(tmp_path)
    assert code == 0
    ran = {(row["op"], row["implementation"], row["cache"]) for row in rows if "p50" in row}
    ours = [] if obstacle("cpu") else ["sjd2 cpp"]
    rules = ("fresh", "coupled", "gumbel-tail", "gumbel", "keep-ratio")
    for op in (*(f"verify {rule}" for rule in rules), "sample draft", "sample gumbel"):
        for implementation in ("definition (eager PyTorch)", *ours):
            assert {(op, implementation, cache) for cache in ("hot", "flushed")} <= ran
    assert {("denoise", implementation, "hot") for implementation in ("definition (eager PyTorch)", *ours)} <= ran
    assert all(0 < row["p20"] <= row["p50"] <= row["p80"] and row["way"] == "clock" for row in rows if "p50" in row)
    with (tmp_path / "ops.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["op"] for line in lines] == [row["op"] for row in rows]
    assert all(line["torch"] == torch.__version__ for line in lines)


def test_what_cannot_run_is_a_row_that_says_why(tmp_path):
    _, rows = run(tmp_path)
    why = {row["implementation"]: row["not run"] for row in rows if "not run" in row}
    assert set(why) == {"sjd2 triton", "flashinfer", "sglang", "vllm", "vllm_rejection"}
    assert "Triton" in why["sjd2 triton"]


@pytest.mark.skipif(obstacle("cpu") is not None, reason="the compiled module is not there")
def test_a_result_that_is_not_the_definitions_is_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(Window, "sample", lambda window, purpose, backend: window.arguments["drafts"] + (backend == "cpp"))
    code, rows = run(tmp_path)
    assert code == 1
    wrong = [row for row in rows if row["op"].startswith("sample") and row["implementation"] == "sjd2 cpp"]
    assert [row.get("not run") for row in wrong] == ["does not give the definition's result"] * 2


def test_checked_alone_nothing_is_timed(tmp_path):
    code, rows = run(tmp_path, "--compile-only")
    assert code == 0
    assert all("not run" in row for row in rows)


def chain(
    predicts,
    accept_index,
    accept_token_num,
    candidates,
    retrive_index,
    retrive_next_token,
    retrive_next_sibling,
    uniform_samples,
    uniform_samples_for_final_sampling,
    target_probs,
    draft_probs,
    threshold_single,
    threshold_acc,
    deterministic,
):
    """What SGLang's kernel of that name does with the arguments that it has, as far as it is checked: acceptances, one row at a time."""
    batch, slots = candidates.shape
    assert target_probs.shape[1] == slots
    assert draft_probs.shape[1] == slots - 1
    assert retrive_index.shape == accept_index.shape == (batch, slots)
    assert len(predicts) == batch * slots
    for row in range(batch):
        step = 1
        while step < slots:
            draft = candidates[row, step]
            if uniform_samples[row, step - 1] * draft_probs[row, step - 1, draft] >= target_probs[row, step - 1, draft]:
                break
            step += 1
        accept_token_num[row] = step - 1


def install(monkeypatch, name: str, **contents) -> None:
    """A module that is not there."""
    for end in range(1, name.count(".") + 2):
        module = ModuleType(".".join(name.split(".")[:end]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(sys.modules[name]).update(contents)


def test_sglang_is_asked_for_a_chain_and_gives_the_definitions_acceptances(monkeypatch):
    name = "sglang.kernels.ops.speculative.reject_sampling"
    install(monkeypatch, name, chain_speculative_sampling_triton=chain)
    window = Window(3, 6, 40, torch.device("cpu"))
    contender = op_peers.sglang(window)
    assert contender.agrees()
    assert 0 < int(contender.call().sum()) < 3 * 6, "some drafts are accepted and some are not"
    sys.modules[name].chain_speculative_sampling_triton = lambda **named: named["accept_token_num"].fill_(7)
    assert not op_peers.sglang(window).agrees()


def rejection_sample(
    draft_token_ids,
    num_draft_tokens,
    max_spec_len,
    cu_num_draft_tokens,
    draft_probs,
    target_logits,
    bonus_token_ids,
    sampling_metadata,
    *,
    accept_below=1.0,
    sign=1,
):
    """What vLLM's function of that name does with the arguments that it has, one request at a time."""
    assert sampling_metadata.all_random
    assert not sampling_metadata.generators
    found = torch.full((len(num_draft_tokens), max_spec_len + 1), -1, dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    for row, (end, count) in enumerate(zip(cu_num_draft_tokens.tolist(), num_draft_tokens, strict=True)):
        for step, at in enumerate(range(end - count, end)):
            p, q, draft = target_logits[at].softmax(-1), draft_probs[at], draft_token_ids[at]
            if accept_below * torch.rand((), generator=generator) * q[draft] <= p[draft]:
                found[row, step] = draft
                continue
            found[row, step] = torch.multinomial((sign * (p - q)).clamp(min=0) + 1e-12, 1, generator=generator)
            break
        else:
            found[row, count] = bonus_token_ids[row]
    return found


@pytest.mark.parametrize(("wrong", "right"), [({}, True), ({"accept_below": 50.0}, False), ({"sign": -1}, False)])
def test_vllm_is_asked_for_whole_windows_and_what_cannot_be_is_seen(monkeypatch, wrong, right):
    install(monkeypatch, "vllm.v1.sample.rejection_sampler", rejection_sample=partial(rejection_sample, **wrong))
    contender = op_peers.vllm_rejection(Window(24, 6, 40, torch.device("cpu")))
    assert contender.agrees() == right
    lengths = (contender.call() >= 0).sum(1)
    assert 1 <= lengths.min() < lengths.max(), "some drafts are accepted and some are not"


def test_a_peer_that_breaks_ends_itself_and_not_the_run(tmp_path, monkeypatch):
    def broken(window):
        raise AttributeError("module has no attribute 'peer'")

    monkeypatch.setattr(fused_ops, "PEERS", (broken,))
    monkeypatch.setattr(fused_ops, "_on_gpu", lambda device: True)
    code, rows = run(tmp_path)
    assert code == 0
    assert [row["not run"] for row in rows if row["implementation"] == "broken"] == ["AttributeError: module has no attribute 'peer'"]
