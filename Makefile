# `make demo` and `make test` set up all that they need on a fresh machine.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format figures clean

demo: .venv/ready-dev
	$(BIN)/cna-lens demo

test: .venv/ready-dev
	$(BIN)/pytest

check: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

figures: .venv/ready-dev
	$(BIN)/cna-lens demo --figures figures

format: .venv/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/ready-dev: pyproject.toml scripts/setup.py
	$(PYTHON) scripts/setup.py dev static
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
