# Each verb sets up all it needs on a machine with Python 3.11+ and make: the first one that runs creates .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Waiting OpenMP threads sleep instead of spinning: on few cores spinning is several times slower.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT  ?= 0
# People see what is downloaded; a log need not.
QUIET  := $(if $(CI),--quiet)

.PHONY: demo serve test test-all lint bench clean help
.DEFAULT_GOAL := help

help:      ## list the verbs
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

demo: $(VENV)/.installed      ## MovieLens-100k from download to answers on http://127.0.0.1:8000
	$(BIN)/shortlist demo

serve: $(VENV)/.installed     ## serve the platform from the data folder that demo (or your own import) filled
	$(BIN)/shortlist serve

test: $(VENV)/.installed      ## the test suite, without the slow extras
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-all: $(VENV)/.installed-all  ## every test: downloads, soaks, container files
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or not slow"

lint: $(VENV)/.installed      ## ruff, mypy --strict, and the one direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed     ## every benchmark in its quick form; rows go to tests/bench/results.csv
	$(BIN)/python -m tests.bench --quick

clean:     ## remove the environment, caches and the data folder
	rm -rf $(VENV) data .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Shortlist needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Set PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(QUIET) --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.installed-all: $(VENV)/.installed
	$(BIN)/python -m pip install $(QUIET) --disable-pip-version-check -c constraints.txt -e '.[dev,infra]'
	touch $@
