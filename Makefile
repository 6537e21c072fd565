# `make demo` and `make test` work on a fresh machine with Python >= 3.10, git and make: each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TEST_PROCESSES ?= 2
STAMP := $(VENV)/.installed

.PHONY: help install demo test lint clean
.DEFAULT_GOAL := help

help:  ## list what there is to make
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(STAMP)  ## virtual environment in .venv with the package and the developers' tools

$(STAMP): pyproject.toml constraints.txt
	@echo "== setting up $(VENV) (a few minutes, mostly PyTorch)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: install  ## train DDU on the bundled digits, score it against real and synthetic OOD data, print the table
	@echo "== training DDU on scikit-learn's digits (runs/)"
	$(BIN)/python train_local.py dataset=digits model=img_ddu trainer=cpu fixed.output_folder=runs/demo
	@echo "== scoring every run below runs/demo against the OOD sets (out/demo/)"
	$(BIN)/python evaluate.py --checkpoint-dir runs/demo --output-folder out/demo --eval-classification

test: install  ## the whole test suite
	@echo "== running the test suite"
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadgroup

lint: install  ## ruff, mypy and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## remove the virtual environment and caches; runs and results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
