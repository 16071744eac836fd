# make demo    solve a real problem with the bundled model and show its threads
# make test    install what the tests need and run them all
# make picture draw the README's picture from a run of the bundled model
# make lint    ruff and mypy
# make smollm2 fetch a real small model into models/, for `apr-agents bench engine`
# make train-bundled   train the bundled model again, from its seed (hours; goes on where it was)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo picture test lint setup smollm2 train-bundled
.DEFAULT_GOAL := test

QUESTION = $$($(BIN)/python -c "from apr_agents.cli.ui import EXAMPLE; print(EXAMPLE)")

demo: .venv/installed
	@$(BIN)/apr-agents solve "$(QUESTION)"

picture: .venv/installed-dev
	@mkdir -p docs runs
	@$(BIN)/apr-agents solve "$(QUESTION)" --trace runs/picture.json
	@$(BIN)/apr-agents trace plot runs/picture.json -o docs/waterfall.svg

test: lint
	$(BIN)/pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/installed-dev

smollm2: .venv/installed-dev
	$(BIN)/python -m apr_agents.bench.smollm2

train-bundled: .venv/installed-dev
	$(BIN)/torchrun --standalone --nproc-per-node $$(nproc) -m apr_agents.training.bundled

.venv/made:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	@touch $@

.venv/installed: pyproject.toml constraints.txt | .venv/made
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[local]"
	@touch $@

.venv/installed-dev: .venv/installed .venv/schemathesis/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --group dev
	@touch $@

# Apart: langgraph-cli wants another jsonschema-rs.
.venv/schemathesis/installed: | .venv/made
	$(PYTHON) -m venv .venv/schemathesis
	.venv/schemathesis/bin/pip install --quiet --disable-pip-version-check "schemathesis>=4.32,<5"
	@touch $@
