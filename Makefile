# Every target does all of its own set-up; `make` alone lists them.
# Variables given on the command line (PORT=9000, AGENT=my.module:agent, …) reach the commands as environment.

.SHELLFLAGS := -eu -c
.DEFAULT_GOAL := help
.PHONY: help run new test-agent url keys webhooks deliveries test check bench build build-ResponsesFunction start-api deploy requirements clean

VENV := .venv
BIN := $(VENV)/bin
PACKAGES := channel handler infra
AGENT_STAMP := $(if $(wildcard agent/requirements.txt),$(VENV)/.agent-stamp)
CODE := $(PACKAGES) tests
# A file's tests share engines and servers, so they stay together.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadfile

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 24

run: $(VENV)/.local-stamp $(AGENT_STAMP) ## local server with an embedded table and the demo agent (PORT=, AGENT=)
	@exec $(BIN)/lambda-responses run

new: $(VENV)/.local-stamp ## a minimal agent in agent/ (FRAMEWORK=plain, agent-framework, openai-agents, langgraph, strands, pydantic-ai, bedrock or openai)
	@$(BIN)/lambda-responses new $(if $(FRAMEWORK),--framework $(FRAMEWORK))

test-agent: $(VENV)/.local-stamp $(AGENT_STAMP) ## the tests in agent/
	@$(BIN)/python -c "import pytest" 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check pytest -c requirements-dev.txt
	@$(BIN)/python -m pytest -W default $(ARGS) agent

url: $(VENV)/.local-stamp $(AGENT_STAMP) ## local function URL: the streaming loop, as Lambda runs it (PORT=8100, ARGS="--help")
	@exec $(BIN)/lambda-responses url --port $${PORT:-8100} $(ARGS)

keys: $(VENV)/.local-stamp ## API keys: ARGS="create --principal NAME --table TABLE", "list …" or "revoke ID …"
	@exec $(BIN)/lambda-responses keys $(ARGS)

webhooks: $(VENV)/.local-stamp ## webhook endpoints: ARGS="create --principal NAME --url URL --table TABLE", "list …", "delete ID …" or "dead …"
	@$(BIN)/lambda-responses webhooks $(ARGS)

deliveries: $(VENV)/.local-stamp ## replies that did not arrive: ARGS="list --principal NAME --table TABLE", "retry ID … --function NAME" or "drop ID …"
	@$(BIN)/lambda-responses deliveries $(ARGS)

test: $(VENV)/.dev-stamp ## all tests
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

check: $(VENV)/.dev-stamp ## format, lint, types, import rules, tests with branch coverage
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL) $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

bench: $(VENV)/.dev-stamp ## speed, as ratios to bare Starlette
	@$(BIN)/python -m tests.bench $(ARGS)

# --- Lambda ------------------------------------------------------------------------------------

# `sam build` calls this target with ARTIFACTS_DIR; `make build` does the same without sam and Docker.
# Wheels are chosen for Lambda's platform whatever machine this is. sam does not pass the architecture,
# but has just written it beside the artifacts.
ARTIFACTS_DIR ?= build/ResponsesFunction
SAM_ARCH := $(shell sed -nE 's/^architecture = "(.*)"/\1/p' "$(ARTIFACTS_DIR)/../../build.toml" 2>/dev/null | head -n 1)
ARCH ?= $(or $(SAM_ARCH),arm64)
PLATFORM = $(if $(filter x86_64,$(ARCH)),x86_64,aarch64)
PIP_FOR_LAMBDA = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --upgrade \
  --only-binary :all: --implementation cp --python-version 3.13 \
  $(foreach abi,manylinux2014 manylinux_2_17 manylinux_2_28 manylinux_2_34,--platform $(abi)_$(PLATFORM)) \
  --target "$(ARTIFACTS_DIR)"

build: ## the folder that is deployed, in build/ (ARCH=arm64 or x86_64); `sam build` makes the same
	@rm -rf "$(ARTIFACTS_DIR)"
	@$(MAKE) --no-print-directory build-ResponsesFunction

build-ResponsesFunction: | $(BIN)/python
	@case "$(ARCH)" in arm64|x86_64) ;; *) echo "ARCH is $(ARCH), but it must be arm64 or x86_64." >&2; exit 2;; esac
	@case "$(SAM_ARCH)" in ""|"$(ARCH)") ;; *) echo "ARCH is $(ARCH), but sam builds for $(SAM_ARCH)." >&2; exit 2;; esac
	@mkdir -p "$(ARTIFACTS_DIR)"
	@$(PIP_FOR_LAMBDA) -r requirements.txt
	@if [ -f agent/requirements.txt ]; then $(PIP_FOR_LAMBDA) -r agent/requirements.txt -c requirements.txt; fi
	@for folder in $(PACKAGES) agent; do if [ -d $$folder ]; then \
	  find $$folder -name '*.py[co]' -prune -o -name __pycache__ -prune -o -type f -print | tar -cf - -T - | tar -xf - -C "$(ARTIFACTS_DIR)"; \
	fi; done
	@rm -rf "$(ARTIFACTS_DIR)/bin" $(foreach name,$(LOCAL_ONLY),"$(ARTIFACTS_DIR)/handler/$(name)")
	@$(COMPILE)
	@echo "Built for $(ARCH) in $(ARTIFACTS_DIR): $$($(BIN)/python -c '$(MEGABYTES)' "$(ARTIFACTS_DIR)") MB unzipped (Lambda takes 250). The largest:"
	@cd "$(ARTIFACTS_DIR)" && du -sh -- */ | sort -rh | head -n 6 | sed 's/^/  /'
	@cd "$(ARTIFACTS_DIR)" && echo "Packages:" *.dist-info | sed 's/\.dist-info//g' | fold -s -w 100

# What people use and Lambda does not; its packages are not in the zip either.
LOCAL_ONLY := cli.py cli_deliveries.py cli_new.py cli_webhooks.py embedded.py emulator local.py new start_api.py template_check.py
MEGABYTES := import os, sys; print(round(sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(sys.argv[1]) for name in names) / 1e6, 1))

# Bytecode only counts when Lambda's own version wrote it; hash-based, since a zip changes file times.
# A file of the agent's that does not compile stops the build; packages may hold what never runs.
COMPILE = IFS=:; for folder in $$PATH; do python=$$folder/python3.13; \
  if [ -x "$$python" ] && "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null; then \
    compile() { "$$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash "$$@"; }; \
    if [ -d "$(ARTIFACTS_DIR)/agent" ]; then compile "$(ARTIFACTS_DIR)/agent" || { echo "The code in agent/ does not compile." >&2; exit 1; }; fi; \
    compile "$(ARTIFACTS_DIR)" > /dev/null 2>&1 || true; exit 0; fi; done; \
  echo "No python3.13 here: the zip holds no bytecode, and each cold start compiles (a second or so)." >&2

start-api: $(VENV)/.local-stamp ## `sam local start-api` with a table that the containers reach (PORT=3000; needs sam and docker)
	@exec $(BIN)/lambda-responses start-api --port $${PORT:-3000} $(ARGS)

deploy: $(VENV)/.local-stamp ## build, check and deploy by the SAM CLI (asks before it changes anything)
	@command -v sam > /dev/null || { echo "The SAM CLI is not installed: pip install aws-sam-cli, in an environment of its own." >&2; exit 2; }
	@$(BIN)/lambda-responses check-template
	sam build
	sam deploy $(ARGS)

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

$(VENV)/.agent-stamp: agent/requirements.txt $(VENV)/.local-stamp
	@echo "Installing what agent/requirements.txt asks for …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r agent/requirements.txt -c requirements.txt && touch $@

$(VENV)/.dev-stamp: requirements-dev.txt pyproject.toml | $(BIN)/python
	@echo "Installing what the tests need (once, about a minute) …"
	@$(call install,requirements-dev.txt)
	@$(BIN)/python -m tests.infra.engines
	@$(BIN)/python -m tests.e2e.rie
	@touch $(VENV)/.local-stamp

UV_COMPILE = .tools/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-emit-index-url --no-annotate $(UPGRADE)

requirements: | $(BIN)/python ## pin again what pyproject.toml asks for (UPGRADE=--upgrade for the newest)
	@[ -x .tools/uv/bin/uv ] || { $(BIN)/python -m venv .tools/uv && .tools/uv/bin/pip install --quiet uv; }
	@pin() { local file=$$1 what=$$2; shift 2; \
	  $(UV_COMPILE) pyproject.toml "$$@" -o $$file > /dev/null; \
	  { echo "# $$what: the names are pyproject.toml's, the pins are made by \`make requirements\`."; \
	    cat $$file; } > $$file.new; mv $$file.new $$file; }; \
	pin requirements-dev.txt "Everything that the tests and checks need" --all-extras --group dev; \
	pin requirements-local.txt "What the local server and the command line need" --extra local -c requirements-dev.txt; \
	pin requirements.txt "What the deployed zip holds" -c requirements-dev.txt; \
	sed -i.old -E "s/(python_full_version < '3\.15'|platform_python_implementation == 'CPython') and //g; s/( and| ;) (python_full_version < '3\.15'|platform_python_implementation == 'CPython')//g" requirements*.txt; rm -f requirements*.old

clean: ## remove everything that make made
	rm -rf $(VENV) .tools .aws-sam build dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
