# `make test` is the whole story on a fresh machine: environment, install, lint, types, layers, tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: test lint clean

test: lint
	$(BIN)/pytest

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# torch goes first, pinned, so that no later package pulls another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
# torchvision stays off the import path: beside a CPU build of torch its compiled operators do not load, and then
# nothing of transformers imports. One test adds this folder for itself.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt --upgrade \
		--target $(VENV)/torchvision torchvision
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
