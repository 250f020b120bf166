# Two commands on a fresh machine with Python 3.11: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export JAX_PLATFORMS := cpu
export TPU_LOG_DIR := disabled

.PHONY: demo test test-ops test-models lint unit sweep bench clean

demo: .venv/demo
	$(BIN)/python -m tpu_lowering demo

test: lint unit

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Torch's databases of operators, modules and optimizers: every entry, every sample, every dtype, and gradients.
test-ops: .venv/dev
	TPU_LOWERING_OPINFO=all $(BIN)/python -m pytest tests/opinfo -n 2 --dist worksteal

# The long form of the property tests: 100,000 random graphs through the passes.
sweep: .venv/dev
	TPU_LOWERING_GRAPHS=100000 $(BIN)/python -m pytest tests/property -n 2

# Every model of the suite, trained, in inference mode with all passes verified, and generating.
test-models: .venv/dev
	TPU_LOWERING_MODELS=all $(BIN)/python -m pytest tests/models -n 2

bench: .venv/dev
	$(BIN)/python -m bench

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e '.[demo]'
	touch $@

.venv/dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@ .venv/demo

clean:
	rm -rf .venv
