# The two commands of a user: `make demo` and `make test`. Both set up all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench
PROTOCOLS := csi/protocol/csi.proto modelcache/faces/scaler/protocol/externalscaler.proto
LOAD := $(VENV)/.load

.PHONY: demo test bench bench-load lint lock clean

demo: $(DEV)
	$(BIN)/python -m bench.demo

test: $(DEV) lint
	$(BIN)/python -m tests.tools
	$(BIN)/python -m pytest

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(BENCH)
	$(BIN)/python -m bench

# Beside other loaders of tensors: they want PyTorch, which is several GB to download.
bench-load: $(LOAD)
	$(BIN)/python -m bench load

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'modelcache needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11'; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(DEV): requirements/dev.lock pyproject.toml $(PROTOCOLS) csi/protocol/compile.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(BENCH): requirements/bench.lock $(DEV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/bench.lock
	@touch $@

$(LOAD): requirements/load.lock $(DEV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/load.lock
	@touch $@

# Pins and hashes only; needs uv.
lock:
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --extra all --group dev -o requirements/dev.lock pyproject.toml
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --extra all --group dev --group bench -o requirements/bench.lock pyproject.toml
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --extra all --group dev --group bench --group load -o requirements/load.lock pyproject.toml

clean:
	rm -rf $(VENV) .tools
