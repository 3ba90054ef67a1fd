# Everything starts here: `make` says what there is. Each target does its own set-up, once, in .venv;
# a lock or pyproject.toml that changed makes it anew. No name here is a path outside of this folder.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet
# The locks are complete. Left to resolve, pip would trip over the first newer release of `coverage[toml]`: an extra
# that no lock pins.
LOCKED := $(PIP) --no-deps --require-hashes
LOCK := $(PY) -m piptools compile --quiet --generate-hashes --no-header --strip-extras --allow-unsafe \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options
# Two workers pay only from two cores on; more than four wait for the databases.
PYTEST := $(PY) -m pytest -n auto --maxprocesses 4

.DEFAULT_GOAL := help
.PHONY: help demo test torture check static dbt bench lock docs clean

help:
	@echo "make demo    simulated test sessions, exported into ./demo/warehouse.db, in a minute"
	@echo "make test    all tests, on SQLite and PostgreSQL   (PYTEST_ARGS='-k inbox' for some)"
	@echo "make check   what must pass before a commit: make static, then all tests"
	@echo "make torture tests/torture at length: kills, crashes, cuts, full disks, hostile documents (an hour)"
	@echo "make static  ruff, mypy, import-linter and alembic check"
	@echo "make dbt     the dbt project of dbt/, built by a real dbt in a venv of its own"
	@echo "make bench   seconds and memory beside a dlt pipeline and the floors (BENCH_ARGS=--help: parts, sizes, rounds)"
	@echo "make lock    write requirements/*.txt anew (LOCK_ARGS=--upgrade for newer versions)"
	@echo "make docs    write docs/warehouse.md and dbt/models/sources.yml anew from the comments of tables and views"
	@echo "make clean   delete what these targets made"
	@echo
	@echo "PYTHON=python3.12 make ... takes another Python (3.11 or newer)."

demo: .venv/.run
	@$(PY) -m etl demo
	@echo "  (without an install, checkly-etl is .venv/bin/checkly-etl here)"

test: .venv/.dev
	@$(PYTEST) -q $(PYTEST_ARGS)

# CHECKLY_ETL_TORTURE: how often each torture is repeated (2 in make test and .ci/run, both of a selection).
torture: .venv/.dev
	@CHECKLY_ETL_TORTURE=$${CHECKLY_ETL_TORTURE:-50} $(PYTEST) -q tests/torture $(PYTEST_ARGS)

check: static
	@echo "== pytest (warnings are errors)"
	@$(PYTEST) -q $(PYTEST_ARGS)
	@echo "== all checks passed"

static: .venv/.dev
	@echo "== ruff check"
	@$(PY) -m ruff check --quiet --output-format concise .
	@echo "== ruff format --check"
	@$(PY) -m ruff format --quiet --check .
	@echo "== mypy"
	@$(PY) -m mypy --no-error-summary
	@echo "== import-linter"
	@out=$$(.venv/bin/lint-imports 2>&1) || { echo "$$out"; exit 1; }
	@echo "== alembic check"
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	export CHECKLY_ETL_WAREHOUSE_URL="sqlite:///$$folder/check.db" && \
	$(PY) -m alembic upgrade head && $(PY) -m alembic check >/dev/null

dbt: .venv/.dev .venv/.dbt
	@CHECKLY_ETL_TEST_DBT="$(CURDIR)/.venv/dbt/bin/dbt" $(PYTEST) -q tests/test_dbt.py $(PYTEST_ARGS)

bench: .venv/.dev .venv/.bench
	@$(PY) -m bench.compare $(BENCH_ARGS)

lock: .venv/.dev
	@echo "requirements/run.txt"
	@$(LOCK) $(LOCK_ARGS) -o requirements/run.txt pyproject.toml
	@echo "requirements/build.txt"
	@$(LOCK) $(LOCK_ARGS) -o requirements/build.txt requirements/build.in
	@echo "requirements/dev.txt"
	@$(LOCK) $(LOCK_ARGS) -c requirements/run.txt -c requirements/build.txt -o requirements/dev.txt \
		pyproject.toml requirements/build.in requirements/dev.in
	@echo "requirements/dbt.txt"
	@$(LOCK) $(LOCK_ARGS) -o requirements/dbt.txt requirements/dbt.in
	@echo "requirements/bench.txt"
	@$(LOCK) $(LOCK_ARGS) -o requirements/bench.txt requirements/bench.in

docs: .venv/.dev
	@$(PY) docs/generate_warehouse.py
	@$(PY) docs/generate_dbt.py

clean:
	@rm -rf .venv demo build dist .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find bench docs etl migrations tests -name __pycache__ -prune -exec rm -rf {} +

# --- set-up: each stamp is touched last, so that a set-up that was interrupted is done again -----------------------

.venv/.made:
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or name it: PYTHON=/path/to/python3 make ..." >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is $$("$(PYTHON)" -V 2>&1); name another: PYTHON=python3.12 make ..." >&2; \
		exit 1; }
	@echo "Setting up .venv (once) ..."
	@rm -rf .venv
	@"$(PYTHON)" -m venv .venv
	@touch $@

.venv/.run: .venv/.made requirements/run.txt requirements/build.txt pyproject.toml
	@echo "Installing what checkly-etl needs (once) ..."
	@$(LOCKED) -r requirements/run.txt -r requirements/build.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: .venv/.made requirements/dev.txt pyproject.toml
	@echo "Installing what the tests and checks need (once) ..."
	@$(LOCKED) -r requirements/dev.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch .venv/.run $@

# In a virtual environment of its own: its libraries are not ours.
.venv/.dbt: .venv/.made requirements/dbt.txt
	@echo "Installing dbt (once) ..."
	@rm -rf .venv/dbt
	@"$(PYTHON)" -m venv .venv/dbt
	@.venv/dbt/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r requirements/dbt.txt
	@touch $@

# The same for dlt, which brings another psycopg.
.venv/.bench: .venv/.made requirements/bench.txt
	@echo "Installing dlt (once) ..."
	@rm -rf .venv/bench
	@"$(PYTHON)" -m venv .venv/bench
	@.venv/bench/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r requirements/bench.txt
	@touch $@
