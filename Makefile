PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint docs clean

quickstart: $(VENV)/installed
	$(BIN)/detector quickstart

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# -W ignore: pdoc warns of each NamedTuple, whose generated constructor has annotations that it cannot resolve.
docs: $(VENV)/installed
	$(BIN)/python -W ignore -m pdoc --docformat restructuredtext --no-show-source --output-directory build/docs \
	  detector '!detector\.commands' '!detector\.dev(\.|$$)'
	@echo "build/docs/index.html"

# Installs everything; runs again when the dependencies change.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,docs]'
	touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis
