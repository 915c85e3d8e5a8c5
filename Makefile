# Everything creates .venv by itself and may be run again at any time.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED := 0
# Keeps local Ray on loopback: without it Ray listens on the machine's outer address.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER ?= 0

.PHONY: demo test check format bench clean
.DEFAULT_GOAL := help

help:  ## say what there is
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.installed  ## the main job on bundled real data, start to finish
	@$(BIN)/python scripts/contained.py -- $(BIN)/python scripts/demo.py

test: .venv/.installed-dev  ## all tests
	@$(BIN)/python scripts/contained.py -- $(BIN)/python -m pytest

check: .venv/.installed-dev  ## lint, types, import contracts
	@$(BIN)/python scripts/check.py

format: .venv/.installed-dev  ## rewrite in the project's style
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: .venv/.installed-dev  ## all benchmarks, peers beside us
	@$(BIN)/python -m benchmarks.run

clean:  ## remove what the other targets made
	rm -rf .venv runs store build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing (a few minutes the first time) …"
	@$(PIP) --editable '.[all]'
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing with developer tools (a few minutes the first time) …"
	@$(PIP) --editable '.[all,dev]'
	@touch $@ .venv/.installed
