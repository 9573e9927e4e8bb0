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

# An installation tells the version that it was made with.
$(VENV)/.embedded: pyproject.toml tfserve_kit/version.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[embedded]'
	@touch $@

$(VENV)/.dev: pyproject.toml tfserve_kit/version.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.embedded

.PHONY: demo
demo: $(VENV)/.embedded  ## Train, push, serve, predict and swap, from nothing
	$(BIN)/python examples/digits/demo.py

run-examples = rm -rf build/examples; $(BIN)/python examples/run_all.py --keep build/examples
.PHONY: examples
examples: $(VENV)/.embedded  ## Run all examples, and say how long each takes
	$(run-examples)

.PHONY: setup
setup: $(VENV)/.dev  ## Set up everything for development

.PHONY: test
test: $(VENV)/.dev  ## Run the tests of a few minutes, which need no Docker; ARGS='-k push' picks some
	$(BIN)/python -m pytest -m 'not slow' $(report) $(ARGS) $(later)

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

# Folders where each run of tests leaves a report, for .ci/summary.py, and, in `make check`, what failed.
REPORTS ?=
FAILED  ?=
report = $(if $(REPORTS),--junitxml=$(REPORTS)/$@.xml -rfExX) $(if $(FAILED),-o cache_dir=$(FAILED)/$@)
# What failed is then left to check-again: all but a run that ended otherwise than by tests that fail.
later  = $(if $(FAILED),|| { [ $$? = 1 ] && [ -s $(FAILED)/$@/v/cache/lastfailed ]; })

# All sets of tests share the machine, as many of their tests wait for something; then come those that
# measure time or need it for themselves, and last, once more, those that failed. A failure of the
# ones keeps nobody from seeing what becomes of the others. The tests in integration/ take longest: they
# are run in two sets, by the first letter of a file's name. Those in `told` look at what the examples
# printed, which are run before them.
told = $(wildcard tests/system/test_example_*.py) tests/system/test_tutorials.py
integration = check-integration-a-i check-integration-j-z
shared = slow and not alone and not swarm
.PHONY: check
check: $(VENV)/.dev  ## All that CI runs; the slow tests look at what the examples printed
	@rm -rf build/failed
	@$(MAKE) FAILED=build/failed --keep-going -j8 --output-sync \
	  check-told check-style check-pages check-swarm $(integration) test check-beside; beside=$$?; \
	$(MAKE) FAILED=build/failed check-alone; alone=$$?; \
	$(MAKE) check-again && [ $$beside$$alone = 00 ]

.PHONY: check-style check-examples check-told check-pages check-swarm $(integration) check-beside check-alone check-again
check-style: $(VENV)/.dev
	$(MAKE) lint types protos-check
# An example that fails is run again by the test that looks at what it printed.
check-examples: $(VENV)/.dev
	$(run-examples) || echo 'Its test runs it again.'
check-told check-again: export TFKIT_EXAMPLES = $(CURDIR)/build/examples
check-told: check-examples
	$(BIN)/python -m pytest -m '$(shared)' $(report) $(told) $(ARGS) $(later)
check-pages: $(VENV)/.dev
	$(BIN)/python -m pytest -m '$(shared)' $(report) tests/system $(told:%=--ignore=%) $(ARGS) $(later)
check-swarm: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'slow and swarm' $(report) $(ARGS) $(later)
$(integration): check-integration-%: $(VENV)/.dev
	$(BIN)/python -m pytest -m '$(shared)' $(report) tests/integration/test_[$*]*.py $(ARGS) $(later)
check-beside: $(VENV)/.dev
	$(BIN)/python -m pytest -m '$(shared)' $(report) \
	  --ignore=tests/system --ignore=tests/integration $(ARGS) $(later)
check-alone: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'slow and alone' $(report) $(ARGS) $(later)
check-again: $(VENV)/.dev
	$(BIN)/python .ci/again.py build/failed $(report)

# Clients in JavaScript for tests/integration/test_other_clients.py, and a linter of workflows for
# tests/system/test_release.py, with nothing cached outside.
NODE = build/node
.PHONY: node-modules
node-modules: $(NODE)/.installed  ## Install the JavaScript clients that some slow tests use
$(NODE)/.installed: tests/integration/clients/package.json
	@mkdir -p $(NODE) && cp $< $(NODE)
	npm install --prefix $(NODE) --cache $(NODE)/.cache --no-audit --no-fund --silent
	@touch $@

.PHONY: coverage
coverage: $(VENV)/.dev  ## Run the tests and show what they miss
	$(BIN)/python -m pytest --cov --cov-report=term $(ARGS)

.PHONY: torture
torture: $(VENV)/.dev  ## Break pushes, swaps and requests everywhere, and measure stalls at length; takes long
	TFKIT_TORTURE=1 $(BIN)/python -m pytest tests/torture tests/integration/test_swap.py \
	  tests/integration/test_fleet.py tests/integration/test_swarm.py tests/integration/test_swarm_push.py \
	  tests/integration/test_perf_honesty.py tests/integration/test_perf_quantiles.py \
	  tests/unit/embedded/test_fuzz.py tests/unit/embedded/test_fuzz_front.py \
	  tests/unit/embedded/test_fuzz_models.py $(ARGS)

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

.PHONY: site
site: $(VENV)/.dev  ## Build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: picture
picture: $(VENV)/.dev  ## Draw the README's pictures, of a terminal and of a page, from real runs
	$(BIN)/python docs/picture.py
	$(BIN)/python docs/playground.py

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

.PHONY: release-check
release-check: $(VENV)/.dev  ## Build what a release uploads into dist/, and check it
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

.PHONY: clean
clean:  ## Remove what the other targets made
	rm -rf $(VENV) build dist bench/results .mypy_cache .pytest_cache .ruff_cache
