# On a fresh machine `make demo` and `make test` need Python 3.11 or newer and nothing else: both set up .venv first.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OLDEST := .venv-oldest
PROMPT ?= a red coat on a yellow background

.PHONY: setup demo test test-triton test-full check-triton test-oldest bench bench-ops card lint clean

setup: $(VENV)/.installed

# PyTorch comes first and by itself: the pinned version, as constraints.txt has it.
$(VENV)/.installed: constraints.txt pyproject.toml setup.py $(shell find sjd2_kernels python -name '*.py' -o -path '*/weights/*')
	rm -rf build
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt ".[test,bench,lint,triton]"
	touch $@

# The same picture by plain AR sampling and by a method that gives the same tokens, then by the default method.
demo: setup
	$(BIN)/sjd2 generate "$(PROMPT)" --method ar --seed 1 -o out/demo-ar.png
	$(BIN)/sjd2 generate "$(PROMPT)" --method jacobi --seed 1 -o out/demo-jacobi.png
	$(BIN)/sjd2 generate "$(PROMPT)" --seed 1 -o out/demo.png

test: setup
	$(BIN)/pytest -m "not full"
	$(MAKE) test-triton

# The Triton kernels in Triton's interpreter, which has to be chosen before Triton is imported: a process of its own.
test-triton: setup
	TRITON_INTERPRET=1 $(BIN)/pytest -m "not full" tests/triton

test-full: setup
	HYPOTHESIS_PROFILE=full $(BIN)/pytest
	TRITON_INTERPRET=1 $(BIN)/pytest tests/triton

# Every Triton kernel compiled for four GPUs that need not be there: registers, spills, shared memory.
check-triton: setup
	$(BIN)/python tools/check_triton.py

# The oldest Transformers that pyproject.toml admits.
test-oldest:
	rm -rf build
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check "transformers==5.17.*" ".[test]"
	$(OLDEST)/bin/pytest -m "not full" tests/decoder tests/embedded/test_cli.py

# Figures of every method on the embedded model, stored, and the README's tables written from them.
bench: setup
	$(BIN)/python benchmarks/embedded_model.py -o benchmarks/results/embedded_model.json
	$(BIN)/python benchmarks/tables.py

# Times of the ops beside their floors and peers; worth something on a GPU only.
bench-ops: setup
	$(BIN)/python benchmarks/fused_ops.py -o out/fused_ops.json --csv out/fused_ops.csv

# The embedded model's card, from the shipped weights; fetches the photos if need be.
card: setup
	$(BIN)/python -m sjd2.tiny_scenes.card --out docs

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OLDEST) build out *.egg-info
