# Two commands on a fresh machine with Python 3.11: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export JAX_PLATFORMS := cpu
export TPU_LOG_DIR := disabled

.PHONY: demo test test-ops test-mistakes test-strides test-models test-mesh test-memory test-newest test-xla test-tpu lint \
	unit sweep bench bench-xla docs clean

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
	TPU_LOWERING_OPINFO=all TPU_LOWERING_SWEEP=all $(BIN)/python -m pytest tests/opinfo/test_opinfo.py \
		tests/lower/test_products.py tests/lower/test_samples.py -n 2 --dist worksteal

# What eager refuses of that database is refused; strides of results where arguments are not row-major: every entry.
test-mistakes: .venv/dev
	TPU_LOWERING_OPINFO=all $(BIN)/python -m pytest tests/opinfo/test_mistakes.py -n 2 --dist worksteal

test-strides: .venv/dev
	TPU_LOWERING_OPINFO=all $(BIN)/python -m pytest tests/opinfo/test_strides.py -n 2 --dist worksteal

# Every case of the sweeps, of which the default suite runs a third; and the long form of the property tests: 100,000
# random graphs through the passes, and 2,000 random kernels.
sweep: .venv/dev
	TPU_LOWERING_SWEEP=all $(BIN)/python -m pytest -m sweep -n 2 --dist worksteal
	TPU_LOWERING_GRAPHS=100000 TPU_LOWERING_KERNELS=2000 $(BIN)/python -m pytest tests/property -n 2

# Every model of the suite, trained, in inference mode with all passes verified, and generating; every hand-written twin.
test-models: .venv/dev
	TPU_LOWERING_MODELS=all $(BIN)/python -m pytest tests/models tests/bench/test_whole_models.py -n 2

# Every case of many processes, on two and on four, every way for one to be gone, and the examples.
test-mesh: .venv/dev
	TPU_LOWERING_MESH=all $(BIN)/python -m pytest tests/mesh

# 2,000 kernels of two kinds in one process each, compiled and dropped, and the same through JAX alone: how memory grows.
test-memory: .venv/dev
	TPU_LOWERING_MEMORY=all $(BIN)/python -m pytest tests/test_memory.py -s

# Today's torch, in an environment of its own, 5.4 GB with its CUDA build: the cases, the passes, the backend, refusals,
# other backends, and operators' semantics.
NEWEST_TESTS := tests/cases tests/passes tests/backend tests/refusals tests/bridge tests/analyse tests/ir \
	tests/surroundings tests/lower/test_semantics.py tests/lower/test_foreach.py tests/lower/test_strided.py

test-newest: .venv-newest/test
	.venv-newest/bin/python -m pytest $(NEWEST_TESTS) -n 2 --dist worksteal

# Tensors of torch_xla, on its CPU, in an environment of their own: torch 2.9 and JAX 0.7, about 8 GB. Then what of
# the other tests those releases are for: lowerings, draws, arguments kept between calls.
XLA_TESTS := tests/runtime/torch_xla tests/ir tests/random/test_distributions.py tests/random/test_draws.py \
	tests/random/test_dropout.py tests/lower/test_semantics.py tests/lower/test_strided.py tests/lower/test_foreach.py \
	tests/backend/test_imports.py

test-xla: .venv-xla/test
	PJRT_DEVICE=CPU .venv-xla/bin/python -m pytest $(XLA_TESTS) -n 2 --dist worksteal

# Tensors of torch_tpu, without a TPU: programs up to their launch, in an environment of their own, because torch
# loads torch_tpu by itself.
test-tpu: .venv-tpu/test
	.venv-tpu/bin/python -m pytest tests/runtime/torch_tpu -n 2 --dist worksteal

bench-xla: .venv-xla/test
	PJRT_DEVICE=CPU .venv-xla/bin/python -m bench.xla

bench: .venv/dev
	$(BIN)/python -m bench

# The pages of docs/ as a site in .site, links and navigation checked.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv what is not there yet: torch 2.13.0, JAX 0.10.2, Helion 1.5.1, transformers and what"
	@echo "they need, from the package index that pip is set to. About 0.5 GB are downloaded with the CPU build of torch;"
	@echo "without it, pip on Linux takes the CUDA build, about 3 GB: README.md, Install. The demo downloads nothing:"
	@echo "its model has random weights."
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[demo]'
	touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	touch $@ .venv/demo

.venv/docs: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[docs]'
	touch $@

.venv-newest/test: pyproject.toml constraints-newest.txt
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --no-compile -c constraints-newest.txt -e '.[helion,test]'
	touch $@

.venv-xla/test: pyproject.toml
	$(PYTHON) -m venv .venv-xla
	.venv-xla/bin/python -m pip install --quiet --no-compile -e '.[xla,test]'
	touch $@

.venv-tpu/test: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install --quiet --no-compile -c constraints.txt -e '.[helion,tpu,test]'
	touch $@

clean:
	rm -rf .venv .venv-newest .venv-xla .venv-tpu .site
