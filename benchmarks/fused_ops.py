"""Time of every fused op beside its floor, its definition and its peers.

    python benchmarks/fused_ops.py [--device cuda] [-o results.json] [--csv results.csv]

The floor is what reading every input once and writing every result once takes at the copy rate measured on the same device in the same
run. Times are p20, p50 and p80 over repeated calls, with the inputs in cache (``hot``) and after the cache was overwritten (``flushed``); how they
are taken stands in ``timing.py``. An implementation has to give the definition's tokens (a peer that draws with other random numbers the
definition's acceptances or probabilities) before it is timed; one that cannot run is a row that says why. On a CPU the compiled back-end is timed
beside the definition: figures that say nothing about the kernels. The files are written after every size. Never asserts a time.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from op_inputs import NoisyInputs, Window
from op_peers import PEERS, Contender
from timing import call_times, copy_rate

from conditions import conditions
from sjd2.files import write_atomically
from sjd2_kernels import Purpose, Rule
from sjd2_kernels.compiled import op_backends

Row = dict[str, Any]
COLUMNS = (
    "op", "implementation", "whole", "batch", "window", "vocab", "cache", "way",
    "p20", "p50", "p80", "floor_bytes", "gigabytes_per_second", "percent_of_floor", "not run",
)  # fmt: skip


def _same_tokens(got: Any, wanted: Any) -> bool:
    """Equal but for what rounding may decide: one slot in a hundred."""
    got, wanted = (value[0] if isinstance(value, tuple) else value for value in (got, wanted))
    return float((got != wanted).double().mean()) <= 0.01


def _reason(error: Exception) -> str:
    """Of why something could not run, in a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


@dataclass
class Entrants:
    """Contenders of one op at one size, and those that cannot take part, with the reason."""

    able: list[Contender]
    unable: list[tuple[str, str]]


def _backends(obstacles: dict[str, str | None]) -> Iterator[tuple[str, str | None]]:
    """Names of an op's back-ends beside the definition, and why they cannot run."""
    return ((name, why) for name, why in obstacles.items() if name != "torch")


def compiled_entrant(window: Window, rule: Rule) -> Entrants:
    """``torch.compile`` of the definition."""
    wanted = window.definition(rule)
    whole = torch.compile(lambda: window.definition(rule), dynamic=False)
    return Entrants([Contender("torch.compile of the definition", whole, lambda: _same_tokens(whole(), wanted))], [])


def verify_entrants(window: Window, rule: Rule, device: torch.device) -> Entrants:
    """The definition, our back-ends, and the peers."""
    wanted = window.definition(rule)
    found = Entrants([Contender("definition (eager PyTorch)", lambda: window.definition(rule), lambda: True)], [])
    for name, why in _backends(op_backends(window.logits)):
        if why is not None:
            found.unable.append((f"sjd2 {name}", why))
            continue
        found.able.append(
            Contender(
                f"sjd2 {name}",
                lambda name=name: window.verify(rule, name),
                lambda name=name: _same_tokens(window.verify(rule, name), wanted),
            )
        )
    for peer in PEERS if rule is Rule.FRESH else ():
        try:
            if not _on_gpu(device):
                raise RuntimeError("these are kernels for GPUs")
            found.able.append(peer(window))
        except Exception as error:  # whatever is wrong with another library ends that peer, not the run
            found.unable.append((peer.__name__, _reason(error)))
    return found


def sample_entrants(window: Window, purpose: Purpose) -> Entrants:
    wanted = window.sample(purpose, "torch")
    found = Entrants([Contender("definition (eager PyTorch)", lambda: window.sample(purpose, "torch"), lambda: True)], [])
    for name, why in _backends(op_backends(window.logits)):
        if why is None:
            found.able.append(
                Contender(
                    f"sjd2 {name}",
                    lambda name=name: window.sample(purpose, name),
                    lambda name=name: _same_tokens(window.sample(purpose, name), wanted),
                )
            )
        else:
            found.unable.append((f"sjd2 {name}", why))
    return found


def denoise_entrants(inputs: NoisyInputs) -> Entrants:
    wanted = inputs.denoise("torch").float()
    found = Entrants([Contender("definition (eager PyTorch)", lambda: inputs.denoise("torch"), lambda: True)], [])
    close = {"rtol": 2**-7, "atol": 1e-3}
    for name, why in _backends(op_backends(inputs.embeds, inputs.weight)):
        if why is None:
            found.able.append(
                Contender(
                    f"sjd2 {name}",
                    lambda name=name: inputs.denoise(name),
                    lambda name=name: torch.allclose(inputs.denoise(name).float(), wanted, **close),
                )
            )
        else:
            found.unable.append((f"sjd2 {name}", why))
    return found


class Table:
    """Rows as they come, on the screen and, after every size, in the files."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.device = options, torch.device(options.device)
        self.flush = torch.empty(2**27 if self.device.type == "cuda" else 2**25, dtype=torch.uint8, device=self.device)
        self.rate, self.conditions = copy_rate(self.device), conditions(options.device)
        self.rows: list[Row] = []
        self.failed = False
        print(f"copy rate of {options.device}: {self.rate / 1e9:.1f} GB/s; GB/s and % below count the floor's bytes only")

    def add(self, op: str, size: tuple[int, int, int], floor_bytes: int, entrants: Entrants) -> None:
        """Time the contenders of one op at one size."""
        place = {"op": op, **dict(zip(("batch", "window", "vocab"), size, strict=True)), "floor_bytes": floor_bytes}
        for name, why in entrants.unable:
            self._not_run(place | {"implementation": name}, why)
        for contender in entrants.able:
            here = place | {"implementation": contender.name, "whole": contender.whole}
            try:
                if contender.agrees():
                    self._time(here, contender)
                    continue
                why = "does not give the definition's result"
            except Exception as error:  # one contender's trouble is its own: the others are still worth their time
                why = _reason(error)
            self.failed |= contender.name.startswith("sjd2")
            self._not_run(here, why)

    def _not_run(self, place: Row, why: str) -> None:
        row = place | {"not run": why}
        if not any(row.items() <= other.items() for other in self.rows):
            print(f"  {place['op']:18} {place['implementation']}: not run: {why}", flush=True)
        self.rows.append(row)

    def _time(self, place: Row, contender: Contender) -> None:
        for cache, buffer in (("hot", None), ("flushed", self.flush)):
            if self.options.compile_only:  # what is compiled at its first call is kept on the disk
                continue
            times = call_times(contender.call, self.device, self.options.repeats, buffer)
            p20, p50, p80 = (times.percentile(share) for share in (0.2, 0.5, 0.8))
            achieved = place["floor_bytes"] / (max(p50, 1e-3) * 1e-6)
            row = place | {"cache": cache, "way": times.way, "p20": p20, "p50": p50, "p80": p80}
            row |= {"gigabytes_per_second": achieved / 1e9, "percent_of_floor": 100 * achieved / self.rate}
            size = (row["batch"], row["window"], row["vocab"])
            print(
                f"  {row['op']:18} {size!s:18} {cache:8} {p50:12.1f} µs {row['gigabytes_per_second']:9.1f} GB/s {row['percent_of_floor']:6.1f} %  "
                f"{contender.name} ({times.way})",
                flush=True,
            )
            self.rows.append(row)

    def write(self) -> None:
        """Into the files that were asked for, all rows so far."""
        facts = {"conditions": self.conditions, "copy_bytes_per_second": self.rate, "rows": self.rows}
        if self.options.json is not None:
            write_atomically(self.options.json, lambda path: path.write_text(json.dumps(facts, indent=1) + "\n"))
        if self.options.csv is not None:
            write_atomically(self.options.csv, self._write_csv)

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*COLUMNS, *self.conditions])
            writer.writeheader()
            writer.writerows(row | self.conditions for row in self.rows)


def run(options: argparse.Namespace) -> Table:
    """All rows: the first rule of every size and one image first; then all rules at the sizes that were asked for, then ``torch.compile``."""
    table = Table(options)
    first, *others = (Rule(name) for name in options.rules)
    for batch in options.batch:
        for vocab in options.vocab:
            size = (batch, options.window, vocab)
            window = Window(*size, table.device)
            table.add(f"verify {first.value}", size, window.floor, verify_entrants(window, first, table.device))
            for purpose in (Purpose.DRAFT, Purpose.GUMBEL):
                table.add(f"sample {purpose.name.lower()}", size, window.floor, sample_entrants(window, purpose))
            del window
            table.write()
        for width in options.width:
            inputs = NoisyInputs(batch, options.window, width, table.device)
            table.add("denoise", (batch, options.window, width), inputs.floor, denoise_entrants(inputs))
            table.write()
    for vocab in options.all_rules_at:
        window = Window(options.batch[0], options.window, vocab, table.device)
        for rule in others:
            table.add(f"verify {rule.value}", tuple(window.logits.shape), window.floor, verify_entrants(window, rule, table.device))
            table.write()
    for vocab in options.compiled_at:
        window = Window(options.batch[0], options.window, vocab, table.device)
        table.add(f"verify {first.value}", tuple(window.logits.shape), window.floor, compiled_entrant(window, first))
        table.write()
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8] if cuda else [1])
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--vocab", type=int, nargs="+", default=[1_000, 8_192, 16_384, 32_768, 65_536, 131_072, 184_622] if cuda else [1_000, 8_192])
    parser.add_argument("--width", type=int, nargs="+", default=[4096], help="embedding widths of denoise")
    rules = [Rule.FRESH.value, *(rule.value for rule in Rule if rule is not Rule.FRESH)]
    parser.add_argument("--rules", nargs="+", choices=rules, default=rules, help="the first one at all sizes (default: %(default)s)")
    parser.add_argument("--all-rules-at", type=int, nargs="*", default=[8_192, 131_072] if cuda else [1_000], metavar="VOCAB", help="the other rules")
    parser.add_argument(
        "--compiled-at", type=int, nargs="*", default=[8_192, 65_536] if cuda else [], metavar="VOCAB", help="torch.compile (minutes)"
    )
    parser.add_argument("--repeats", type=int, default=40 if cuda else 5, help="at most")
    parser.add_argument("--compile-only", action="store_true", help="check every result, time nothing: fills the compilers' caches on the disk")
    parser.add_argument("-o", "--json", type=Path)
    parser.add_argument("--csv", type=Path)
    table = run(parser.parse_args(arguments))
    table.write()
    return int(table.failed)


if __name__ == "__main__":
    raise SystemExit(main())
