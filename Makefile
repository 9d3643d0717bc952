# Everything here sets itself up: the first target that needs it makes .venv and installs into it
# the versions of constraints.txt. It is done again when pyproject.toml or constraints.txt changes.

# Any Python from 3.10 on makes the environment: make PYTHON=python3.12 test
PYTHON ?= python3
# Passed to every pip install, for instance to choose the build of torch:
#   make PIP_ARGS="--extra-index-url ADDRESS" test
PIP_ARGS ?=
# Passed to pytest; `make PYTEST_ARGS="tests/kernels -x" test` runs one file in one process.
PYTEST_ARGS ?= -n auto

VENV := .venv
BIN := $(VENV)/bin
# The first pip that knows dependency groups and build constraints both is 25.3.
PIP_VERSION := 26.1.2
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# Twice quiet: errors only, none of the warnings about where pip was told to look.
INSTALL := $(PIP) install -qq --constraint constraints.txt --build-constraint constraints.txt
SET_UP := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test check lint types docs format clean

help: ## this list
	@echo "usage: make TARGET"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  \1\t\2/p' Makefile | expand -t 12
	@echo "PYTHON, PIP_ARGS and PYTEST_ARGS may be given; the top of the Makefile says what for."

setup: $(VENV)/ready ## make .venv with bptt in it

demo: $(VENV)/ready ## train a language model on the text inside this Python, about 4 minutes
	$(BIN)/bptt train --out runs/demo --overwrite --max-minutes 3.4
	@echo "Next: $(BIN)/bptt sample runs/demo --prompt \"The\""

test: $(VENV)/ready-test ## every test and docstring example
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: lint types docs ## lint, format, types and the documentation

lint: $(VENV)/ready-check ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready-check ## mypy
	$(BIN)/mypy

docs: $(VENV)/ready-check ## build the documentation into site/ and check its links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python tools/check_site.py site

format: $(VENV)/ready-check ## rewrite the code as `make lint` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove all that make has made, but not runs/
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, in three layers: the package alone (what its users have), then what the tests
# need, then what the checks need. Each stamp is newer than the files it was made from.

$(VENV)/pip:
	@$(PYTHON) -c 'import sys' || { echo "'$(PYTHON)' does not run; choose a Python: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "bptt needs Python 3.10 or newer and '$(PYTHON)' is `$(PYTHON) -V 2>&1`; choose another: make PYTHON=python3.12"; exit 1; }
	@echo "set-up: making $(VENV) with `$(PYTHON) -V`"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq $(PIP_ARGS) pip==$(PIP_VERSION)
	@touch $@

$(VENV)/ready: $(VENV)/pip $(SET_UP)
	@echo "set-up: installing bptt and what it runs on (the download of torch is the long part)"
	@$(INSTALL) $(PIP_ARGS) --editable .
	@touch $@

$(VENV)/ready-test: $(VENV)/ready
	@echo "set-up: installing what the tests use"
	@$(INSTALL) $(PIP_ARGS) --group test
	@touch $@

$(VENV)/ready-check: $(VENV)/ready-test
	@echo "set-up: installing what the checks use"
	@$(INSTALL) $(PIP_ARGS) --group lint --group docs
	@touch $@
