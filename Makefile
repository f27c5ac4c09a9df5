# On a fresh machine `make demo` is environment, install and one picture segmented by words; `make test` is
# environment, install, lint, types, layers and tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint documents clean

demo: $(VENV)/.base
	$(BIN)/zsseg demo

# Two processes with a thread each are faster than one with two; a file's tests share what they set up.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Every card and table that follows from the results in the repository.
documents: $(VENV)/.base
	$(BIN)/python benchmarks/documents.py

# What running needs. torch goes first, pinned, so that no later package pulls another build of it.
$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# And what developing needs.
$(VENV)/.installed: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
# torchvision stays off the import path, and with it open_clip, which needs it: beside a CPU build of torch its
# compiled operators do not load, and then nothing of transformers imports. Two tests add this folder themselves.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt --upgrade \
		--target $(VENV)/torchvision torchvision open_clip_torch ftfy timm wcwidth
# transformers' own tests of models, which run on ours too: only its sdist has them.
	rm -rf $(VENV)/transformers-tests
	$(BIN)/python -m pip download --quiet --no-deps --no-binary transformers --constraint constraints.txt \
		--dest $(VENV)/transformers-tests transformers
	tar -xzf $(VENV)/transformers-tests/transformers-*.tar.gz -C $(VENV)/transformers-tests \
		--strip-components=1 --exclude '*/src'
	touch $(VENV)/transformers-tests/tests/__init__.py
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
