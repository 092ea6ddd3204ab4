# Everything a developer runs. A fresh machine needs make and python3 (3.11 or newer) with venv or pip.

PYTHON ?= python3
VENV ?= .venv
MPREG_SOURCE ?=
PAYLOADS ?=

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
# What must be covered to the last branch: it decides, and it is all that is ever rebuilt from a log. Its own tests do
# that, without those that draw what they do, by which a branch would be covered by luck. They alone run a second time
# and traced, because tracing makes tests two to four times as slow, and most are not about this.
CORE := mpreg_mq/projections/*,mpreg_mq/actors/decider/*
CORE_TESTS := tests/decider tests/projections

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench bench-record soak test-mpreg clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  Variables: PYTHON=$(PYTHON) VENV=$(VENV) MPREG_SOURCE=$(MPREG_SOURCE)"

install: $(STAMP) ## Set up the environment in .venv (the other targets do it when needed)

demo: $(STAMP) ## Run the demo; pass arguments with DEMO='--messages 500'
	@$(VENV)/bin/mpreg-queue-demo $(DEMO)

test: lint ## Lint, type-check, run the tests, check the coverage of the core
	@$(PY) -m pytest --cov --cov-report= -m 'not hypothesis' $(CORE_TESTS)
	@$(PY) -m coverage report --include='$(CORE)' --fail-under=100
	@$(PY) -m pytest -n 2

lint: $(STAMP) ## Run ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m mypy

bench: $(BENCH_STAMP) ## Measure ours beside its peers (12 minutes); BENCH='--only replay', MPREG_SOURCE=dir, PAYLOADS=file
	@$(PY) -m benchmarks $(BENCH) $(if $(MPREG_SOURCE),--mpreg-source '$(MPREG_SOURCE)') \
		$(if $(PAYLOADS),--payloads '$(PAYLOADS)')

bench-record: $(STAMP) ## Record what this commit costs in benchmarks/history.jsonl, and compare it with the one before
	@$(PY) -m benchmarks.record

soak: $(STAMP) ## Run the tests with many more examples, seeds and cycles (takes long)
	@HYPOTHESIS_PROFILE=soak MPREG_MQ_TESTS=soak $(PY) -m pytest -n 2

test-mpreg: $(STAMP) ## Run the tests against a real MPREG: MPREG_SOURCE=dir [PYTHON=python3.14 VENV=.venv-mpreg]
	@if [ -z '$(MPREG_SOURCE)' ]; then \
		if ! $(PY) -c 'import mpreg.server' 2>/dev/null; then \
			echo "test-mpreg: SKIPPED, there is no MPREG. It needs MPREG_SOURCE=dir, a checkout of"; \
			echo "test-mpreg: https://github.com/mattsta/mpreg (commit 4dc0027 is what was tested), and the Python that"; \
			echo "test-mpreg: its code is for, 3.14: make test-mpreg MPREG_SOURCE=dir PYTHON=python3.14 VENV=.venv-mpreg"; \
			exit 0; \
		fi; \
	else \
		$(PY) -c 'import sys, tomllib; print("\n".join(tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"]))' \
			'$(MPREG_SOURCE)/pyproject.toml' > '$(VENV)/mpreg-requirements.txt' && \
		$(PY) -m pip install --quiet --disable-pip-version-check -r '$(VENV)/mpreg-requirements.txt' hypothesis || exit 1; \
		if ! reason=$$(PYTHONPATH='$(MPREG_SOURCE)' $(PY) -c 'import mpreg.server' 2>&1); then \
			echo "test-mpreg: FAILED, MPREG in $(MPREG_SOURCE) cannot be imported with $$($(PY) --version):" >&2; \
			echo "test-mpreg: $$(echo "$$reason" | tail -n 1)" >&2; \
			echo "test-mpreg: a SyntaxError means that its code is for a newer Python: name one, and an environment of its" >&2; \
			echo "test-mpreg: own, for example PYTHON=python3.14 VENV=.venv-mpreg" >&2; \
			exit 1; \
		fi; \
	fi; \
	PYTHONPATH='$(MPREG_SOURCE)' $(PY) -m pytest tests/mpreg tests/exchange tests/cluster/test_fabric.py

clean: ## Remove environments, builds and caches
	rm -rf .venv .venv3* .venv-* build dist .coverage .coverage.* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp says that the environment holds what pyproject.toml asks for. Where the standard venv module cannot
# work (Debian splits it into python3-venv), virtualenv does the same; --target keeps it out of the system's
# packages, which also is what an externally managed Python allows.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "mpreg-mq needs Python 3.11 or newer, and PYTHON=$(PYTHON) is: $$($(PYTHON) --version 2>&1)" >&2; \
		echo "Name another one, for example: make $(or $(firstword $(MAKECMDGOALS)),install) PYTHON=python3.12" >&2; \
		exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) (once)"
	@rm -rf '$(VENV)'
	@$(PYTHON) -m venv '$(VENV)' >/dev/null 2>&1 || { \
		rm -rf '$(VENV)'; \
		echo "python -m venv does not work here; using virtualenv"; \
		$(PYTHON) -m pip install --quiet --target build/virtualenv virtualenv && \
		PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv --quiet '$(VENV)' || { \
			echo "No environment: install python3-venv (apt-get install python3-venv) or pip, then try again" >&2; \
			exit 1; }; }
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(BENCH_STAMP): $(STAMP)
	@echo "Installing the clients that the benchmarks need (once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[bench]' || \
		echo "Not all could be installed; the peers that lack theirs are skipped"
	@touch $@
