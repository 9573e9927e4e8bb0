# Every target sets up what it needs by itself: a virtual environment in .venv and the packages.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help

.PHONY: help
help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.embedded: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[embedded]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.embedded

.PHONY: demo
demo: $(VENV)/.embedded  ## Train, push, serve, predict and swap, from nothing
	$(BIN)/python examples/digits/demo.py

.PHONY: examples
examples: $(VENV)/.embedded  ## Run all examples, and say how long each takes
	@rm -rf build/examples
	$(BIN)/python examples/run_all.py --keep build/examples

.PHONY: setup
setup: $(VENV)/.dev  ## Set up everything for development

.PHONY: test
test: $(VENV)/.dev  ## Run the tests of a few minutes, which need no Docker; ARGS='-k push' picks some
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

.PHONY: test-slow
test-slow: $(VENV)/.dev  ## Run the others: containers, pages, examples, hostile clients, fuzzing
	$(BIN)/python -m pytest -m slow $(ARGS)

.PHONY: test-all
test-all: test test-slow  ## Run all tests

.PHONY: lint
lint: $(VENV)/.dev  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(VENV)/.dev  ## Check types
	$(BIN)/mypy

.PHONY: format
format: $(VENV)/.dev  ## Put the style right where a tool can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# Slow tests that neither measure time nor run containers: in `check` they share the machine.
BESIDE = tests/unit tests/field tests/contract/test_golden.py tests/torture/test_faults.py \
         tests/torture/test_power_loss.py tests/torture/test_surroundings.py \
         tests/torture/test_system_calls.py

.PHONY: check
check: $(VENV)/.dev  ## All that CI runs; the slow tests look at what the examples printed
	$(MAKE) -j2 --output-sync check-examples test check-beside
	TFKIT_EXAMPLES=$(CURDIR)/build/examples $(MAKE) check-alone

.PHONY: check-examples check-beside check-alone
check-examples: lint types protos-check
	$(MAKE) examples
check-beside: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow $(BESIDE) $(ARGS)
check-alone: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow $(BESIDE:%=--ignore=%) $(ARGS)

.PHONY: coverage
coverage: $(VENV)/.dev  ## Run the tests and show what they miss
	$(BIN)/python -m pytest --cov --cov-report=term $(ARGS)

.PHONY: torture
torture: $(VENV)/.dev  ## Break pushes, swaps and requests everywhere, and measure stalls at length; takes long
	TFKIT_TORTURE=1 $(BIN)/python -m pytest tests/torture tests/integration/test_swap.py \
	  tests/integration/test_perf_honesty.py tests/integration/test_perf_quantiles.py \
	  tests/unit/embedded/test_fuzz.py tests/unit/embedded/test_fuzz_models.py $(ARGS)

.PHONY: protos
protos: $(VENV)/.dev  ## Make the protobuf schema from the official packages, and the example's
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m tfserve_kit.protos.generate
	$(BIN)/python examples/classification_service/compile_protos.py

.PHONY: protos-check
protos-check: $(VENV)/.dev  ## Compare both with what would be made now
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m tfserve_kit.protos.generate --check
	$(BIN)/python examples/classification_service/compile_protos.py --check

.PHONY: docs
docs: $(VENV)/.dev  ## Generate the reference pages in docs/
	$(BIN)/python docs/generate.py

.PHONY: picture
picture: $(VENV)/.embedded  ## Draw the README's picture of a terminal from a real run
	$(BIN)/python docs/picture.py

.PHONY: tutorials
tutorials: $(VENV)/.dev  ## Paste what commands print into the tutorials, and the table of models
	TFKIT_PASTE=1 $(BIN)/python -m pytest tests/system/test_tutorials.py tests/field/test_page.py

.PHONY: bench
bench: $(VENV)/.dev  ## Run the benchmarks; results go to bench/results
	$(BIN)/python -m bench

.PHONY: bench-embedded
bench-embedded: $(VENV)/.dev  ## Run the benchmarks of the embedded engine alone (E2 to F6)
	$(BIN)/python -m bench --only E,F

.PHONY: bench-push
bench-push: $(VENV)/.dev  ## Run the benchmarks of pushing alone (S1 to S3)
	$(BIN)/python -m bench --only S

.PHONY: bench-client
bench-client: $(VENV)/.dev  ## Run the benchmarks of the clients alone (C1 to C5)
	$(BIN)/python -m bench --only C

.PHONY: bench-perf
bench-perf: $(VENV)/.dev  ## Run the benchmarks of the load harness alone (P1 to P6)
	$(BIN)/python -m bench --only P

.PHONY: bench-tune
bench-tune: $(VENV)/.dev  ## Tune two models against the server's default batching; twenty minutes
	$(BIN)/python -m bench.tune

.PHONY: wheel
wheel: $(VENV)/.dev  ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

.PHONY: clean
clean:  ## Remove what the other targets made
	rm -rf $(VENV) build dist bench/results .mypy_cache .pytest_cache .ruff_cache
