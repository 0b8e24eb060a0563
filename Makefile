# Everything happens in .venv, made from PYTHON (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: crystals check test test-slow tutorial lint docs dist clean

crystals: .venv/core  ## install cfx and draw ten crystals with the bundled model
	$(BIN)/cfx sample --model mini --sg 194 --n 10 -o crystals.cif --force

# Tests have three tiers, held complete by tests/test_tiers.py: quick ones, `integration` and `slow`.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
TESTED ?= not slow

check: lint  ## format, lint, types, layers and quick tests
	$(PYTEST) -m "not integration and not slow"

test: .venv/all  ## all tests but slow ones, which is what plain pytest runs too; all: make test TESTED="slow or not slow"
	$(PYTEST) -m "$(TESTED)"

test-slow: .venv/all  ## kills, fuzzing, statistics, several devices, the tutorial
	$(PYTEST) -m "slow"

# What cuts the network off, where the system allows it.
OFFLINE := $(shell unshare --map-root-user --net true 2>/dev/null && echo unshare --map-root-user --net)

tutorial: .venv/all  ## the tour of the README and the tutorial, exactly as printed, without a network
	CFX_AS_PRINTED=1 $(OFFLINE) $(BIN)/python -m pytest -m slow tests/docs/test_commands.py

lint: .venv/all  ## format, lint and types
	$(BIN)/ruff format --check src tests tools benchmarks
	$(BIN)/ruff check src tests tools benchmarks
	$(BIN)/basedpyright

docs: .venv/docs  ## build these pages into site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dist: .venv/bin/python  ## build the wheel and the source distribution into dist/
	rm -rf dist
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/core: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	touch $@

# torch first, so that the reward libraries settle for this one.
.venv/all: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e '.[all,dev]'
	touch $@

.venv/docs: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

clean:
	rm -rf .venv
