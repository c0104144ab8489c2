"""Benchmarks of decoding methods: the same prompts and seeds for all, in one process, in turn; see docs/bench.md."""

from .identity import code_digest, device_name, fingerprint
from .plots import draw_bench
from .quality import embedded_measures
from .report import labels, table, write_csv, write_json
from .run import run_bench
from .settings import BenchSettings, Variant, variants_of
from .store import Store
from .summary import summarise

__all__ = [
    "BenchSettings",
    "Store",
    "Variant",
    "code_digest",
    "device_name",
    "draw_bench",
    "embedded_measures",
    "fingerprint",
    "labels",
    "run_bench",
    "summarise",
    "table",
    "variants_of",
    "write_csv",
    "write_json",
]
