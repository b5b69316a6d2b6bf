PYTHON ?= python3
VENV := .venv
FLOOR := .venv-floor
PYTEST := pytest -q -n logical --maxprocesses 8 --dist worksteal
CONFIG := configs/biprop/digits/conv2_mpt1_32.yaml

.PHONY: demo test test-floor lint types docs
.DEFAULT_GOAL := test

demo: $(VENV)/.installed
	$(VENV)/bin/frugal fit -c $(CONFIG)
	$(VENV)/bin/frugal test -c $(CONFIG)
	$(VENV)/bin/frugal count -c $(CONFIG)

test: $(VENV)/.installed
	$(VENV)/bin/$(PYTEST)

# The suite on the lowest versions that pyproject.toml admits.
test-floor: $(FLOOR)/.installed
	$(FLOOR)/bin/$(PYTEST)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed
	$(VENV)/bin/mypy

docs: $(VENV)/.installed
	$(VENV)/bin/python -m studies.documents

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("frugal needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --editable '.[dev]'
	touch $@

# From nothing: uv would keep a newer version that is installed.
$(FLOOR)/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(FLOOR)
	$(FLOOR)/bin/pip install uv
	$(FLOOR)/bin/uv pip install --python $(FLOOR) --resolution lowest-direct --compile-bytecode --editable '.[dev]'
	touch $@
