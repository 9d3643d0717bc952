# Everything here sets itself up: the first target that needs it makes .venv and installs into it
# the versions of constraints.txt. It is done again when pyproject.toml or constraints.txt changes,
# and the native kernels are compiled again when their sources do.

# Any Python from 3.10 on makes the environment: make PYTHON=python3.12 test
PYTHON ?= python3
# Passed to every pip install, for instance to choose the build of torch:
#   make PIP_ARGS="--extra-index-url ADDRESS" test
PIP_ARGS ?=
# Passed to pytest; `make PYTEST_ARGS="tests/engines -x" test` runs one file in one process.
PYTEST_ARGS ?= -n auto

# The tests start hundreds of processes: each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
# The first pip that knows dependency groups and build constraints both is 25.3.
PIP_VERSION := 26.1.2
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# Twice quiet: errors only, none of the warnings about where pip was told to look.
INSTALL := $(PIP) install -qq --constraint constraints.txt --build-constraint constraints.txt
SET_UP := pyproject.toml constraints.txt
KERNELS := CMakeLists.txt $(wildcard src/bptt/_src/engines/csrc/* src/bptt/_src/engines/csrc/cells/*)
# Fails where they are not native; the reason is in what it prints.
ARE_NATIVE := from bptt import kernels; print("set-up:", b := kernels.backend()); exit(b.name != "native")

# The target's own environment, and pytest without checks of annotations.
WITH_LIBRARIES = $(VENV)/$(@:test-%=%)/bin/python -m pytest -o filterwarnings=default \
	-o "addopts=--strict-markers --import-mode=importlib"
LIBRARIES_integrations := --constraint constraints.txt --group integrations
LIBRARIES_forecasting := --requirement benchmarks/audits/forecasting.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup kernels demo test test-long test-integrations test-forecasting check lint types docs format clean

help: ## this list
	@echo "usage: make TARGET"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' Makefile | expand -t 12
	@echo "PYTHON, PIP_ARGS and PYTEST_ARGS may be given; the top of the Makefile says what for."

setup: $(VENV)/kernels ## make .venv with bptt in it

kernels: $(VENV)/kernels ## compile the native kernels, if a source has changed

demo: $(VENV)/kernels ## train a language model on the text inside this Python, about 4 minutes
	$(BIN)/bptt train --out runs/demo --overwrite --max-minutes 3.4
	@echo "Next: $(BIN)/bptt sample runs/demo --prompt \"The\""

test: $(VENV)/ready-test ## every test and docstring example
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-long: $(VENV)/ready-test ## kills, damaged files, bad options and random cases by the thousand, under 40 minutes
	$(BIN)/python -m pytest -m long $(PYTEST_ARGS) tests

test-integrations: $(VENV)/integrations/ready ## bptt in Lightning, ignite, torchrl and other libraries
	$(WITH_LIBRARIES) tests/integrations

test-forecasting: $(VENV)/forecasting/ready ## bptt in darts and neuralforecast, an install of 1.1 GB
	$(WITH_LIBRARIES) tests/forecasting

check: lint types docs ## lint, format, types and the documentation

lint: $(VENV)/ready-check ## ruff: rules and format; which way imports lean
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/ready-check ## mypy
	$(BIN)/mypy

docs: $(VENV)/ready-check ## run the tutorials, build the documentation into site/ and check it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python tools/check_site.py site
	$(BIN)/python -m pytest -q -m site tests/documentation tests/browser

format: $(VENV)/ready-check ## rewrite the code as `make lint` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove all that make has made, but not runs/
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, in three layers: the package with language models and figures, then what the
# tests need, then what the checks need. Each stamp is newer than the files it was made from. Between
# the first two, bptt is installed once more, this time with its kernels.

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
	@$(INSTALL) $(PIP_ARGS) --config-settings wheel.cmake=false --editable '.[lm,plot]'
	@touch $@

$(VENV)/kernels: $(VENV)/ready $(KERNELS)
	@echo "set-up: compiling the native kernels"
	@rm -f $@.log
	@$(INSTALL) $(PIP_ARGS) --log $@.log --no-deps --editable .
	@BPTT_KERNELS=auto $(BIN)/python -c '$(ARE_NATIVE)' || { \
	    grep -A 3 -E "error:|CMake Error" $@.log | head -n 20; echo "all of it: $@.log"; }
	@touch $@

$(VENV)/ready-test: $(VENV)/ready | $(VENV)/kernels
	@echo "set-up: installing what the tests use"
	@$(INSTALL) $(PIP_ARGS) --group test
	@touch $@

# Those libraries bring many packages: they get environments that see the packages of .venv.
$(VENV)/integrations/ready $(VENV)/forecasting/ready: $(VENV)/%/ready: $(VENV)/ready-test
	@echo "set-up: installing the libraries that take modules into $(VENV)/$*"
	@$(BIN)/python -m venv --without-pip $(VENV)/$*
	@$(BIN)/python -c 'import pathlib, sysconfig as s; \
	    here = s.get_path("purelib"); inner = s.get_path("purelib", vars={"base": "$(abspath $(VENV))/$*"}); \
	    pathlib.Path(inner, "outer.pth").write_text(f"import site; site.addsitedir({here!r})\n")'
	@$(PIP) --python $(VENV)/$* install -qq $(PIP_ARGS) $(LIBRARIES_$*)
	@touch $@

$(VENV)/ready-check: $(VENV)/ready-test
	@echo "set-up: installing what the checks use"
	@$(INSTALL) $(PIP_ARGS) --group lint --group docs
	@touch $@
