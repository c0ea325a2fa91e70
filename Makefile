# Every target does all of its own set-up; `make` alone lists them.
# Variables given on the command line (PORT=9000, AGENT=my.module:agent, …) reach the commands as environment.

.SHELLFLAGS := -eu -c
.DEFAULT_GOAL := help
.PHONY: help run test check bench build start-api deploy requirements clean \
        build-ResponsesFunction

VENV := .venv
BIN := $(VENV)/bin
PACKAGES := channel handler infra
CODE := $(PACKAGES) tests

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 24

run: $(VENV)/.local-stamp ## local server with an embedded table and the demo agent (PORT=, AGENT=)
	@$(BIN)/python -m handler.local

test: $(VENV)/.dev-stamp ## all tests
	@$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev-stamp ## format, lint, types, import rules, tests with branch coverage
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report

bench: $(VENV)/.dev-stamp ## speed, as ratios to bare Starlette
	@$(BIN)/python -m tests.bench $(ARGS)

# --- set-up ------------------------------------------------------------------------------------

# The first interpreter that is new enough; pyenv's shims exist without working, so each is tried.
FIND_PYTHON = for python in $${PYTHON:-python3} python3.13 python3.14 python3.12 python3.11; do \
  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; done; \
  [ -n "$$python" ] || { echo "Python 3.11 or newer is needed, but $$(python3 --version 2>&1 || true) is what python3 is here; install one, or name it: make PYTHON=/path/to/python3.13" >&2; exit 2; }

$(BIN)/python:
	@$(FIND_PYTHON); "$$python" -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$$python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }

# $(call install,FILE): pinned packages, then the command `lambda-responses` itself
install = $(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(1) && \
  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable . && touch $@

$(VENV)/.local-stamp: requirements-local.txt pyproject.toml | $(BIN)/python
	@echo "Installing what the local server needs (once, about a minute) …"
	@$(call install,requirements-local.txt)

$(VENV)/.dev-stamp: requirements-dev.txt pyproject.toml | $(BIN)/python
	@echo "Installing what the tests need (once, about a minute) …"
	@$(call install,requirements-dev.txt)
	@touch $(VENV)/.local-stamp

UV_COMPILE = .tools/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-emit-index-url --no-annotate $(UPGRADE)

requirements: | $(BIN)/python ## pin again what pyproject.toml asks for (UPGRADE=--upgrade for the newest)
	@[ -x .tools/uv/bin/uv ] || { $(BIN)/python -m venv .tools/uv && .tools/uv/bin/pip install --quiet uv; }
	@pin() { local file=$$1 what=$$2; shift 2; \
	  $(UV_COMPILE) pyproject.toml "$$@" -o $$file > /dev/null; \
	  { echo "# $$what: the names are pyproject.toml's, the pins are made by \`make requirements\`."; \
	    cat $$file; } > $$file.new; mv $$file.new $$file; }; \
	pin requirements-dev.txt "Everything that the tests and checks need" --extra local --group dev; \
	pin requirements-local.txt "What the local server and the command line need" --extra local -c requirements-dev.txt; \
	pin requirements.txt "What the deployed zip holds" -c requirements-dev.txt

clean: ## remove everything that make made
	rm -rf $(VENV) .tools .aws-sam build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
