# celeriac: everything a developer or a curious person types.
#
#   make demo    install and run the main job on real input (examples/stdlib_index)
#   make test    install what the tests need (servers too, on Debian as root) and run all of them
#   make check   formatting, lint, types, architecture
#   make bench   speed beside Celery, and on the embedded default beside SQLite by hand
#   make soak    the long versions of the reliability tests
#   make clean   remove what the above made

VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo servers celery test retest check bench soak clean

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	@sh tools/venv.sh $(VENV)

# Stamps, so that an installation is repeated only when the project's dependencies change.
$(VENV)/installed: $(BIN)/python pyproject.toml
	@echo "installing celeriac"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@$(BIN)/python -m compileall -q src/celeriac
	@touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml
	@echo "installing celeriac and what its tests and checks need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@$(BIN)/python -m compileall -q src/celeriac
	@touch $@ $(VENV)/installed

demo: $(VENV)/installed
	@$(BIN)/python examples/stdlib_index/demo.py

servers:
	@sh tools/servers.sh

# The real Celery, for the other side of interoperability tests and benchmarks.
celery:
	@sh tools/celery_venv.sh .venv-celery

test: $(VENV)/installed-dev servers celery
	$(BIN)/python -m pytest -m "not soak" --cov --cov-report=term

# What failed in the last run, once more.
retest: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "not soak" --last-failed --last-failed-no-failures none

soak: $(VENV)/installed-dev servers celery
	$(BIN)/python -m pytest -m soak --timeout=3600

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/unit/test_typing.py

bench: $(VENV)/installed-dev servers celery
	@$(BIN)/python bench

clean:
	rm -rf $(VENV) .venv-celery .pytest_cache .ruff_cache .hypothesis .coverage build dist
