# Two commands do all the set-up: `make train` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
export PYTHONUNBUFFERED = 1

.PHONY: train test check lint format docs clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Pendulum-v1 through RL Zoo; then one table of training and evaluation returns, the learning curve, the best model, and the
# command that runs it. `--verbose 0`, because each evaluation would print a table of its own otherwise.
train: .venv/installed
	$(BIN)/python -m rl_zoo3.train --algo softac --env Pendulum-v1 --seed 1 \
		--num-threads 1 --eval-freq 1000 --eval-episodes 10 --verbose 0 --progress
	$(BIN)/python examples/learning_curve.py --env Pendulum-v1

test: .venv/installed
	$(BIN)/pytest -n 2

# The quality gate.
check: lint test

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The site, in site/. What builds it is installed here alone, so that the other targets need none of it.
.venv/docs: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "The site: $(CURDIR)/site/index.html"

clean:
	rm -rf .venv site .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
