# make setup | make demo | make test | make soak | make check : each sets up .venv first and needs nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
export REALLOC_KERNEL_CACHE ?= $(CURDIR)/.venv/kernels

.PHONY: setup demo test soak check lint clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml
	@sh tools/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $(STAMP)

setup: $(STAMP)

demo: $(STAMP)
	@sh tools/data.sh
	@$(BIN)/realloc demo

test: $(STAMP) lint
	$(BIN)/python -m pytest -m "not slow" --doctest-modules src tests

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks tools
	$(BIN)/ruff format --check src tests benchmarks tools
	$(BIN)/mypy

soak: $(STAMP)
	@sh tools/data.sh
	$(BIN)/python -m pytest -m slow tests --junitxml=$(VENV)/soak.xml -o junit_logging=system-out
	$(BIN)/python tools/soak.py $(VENV)/soak.xml > $(VENV)/soak.md && mv $(VENV)/soak.md benchmarks/results/soak.md
	@cat benchmarks/results/soak.md

clean:
	rm -rf $(VENV)
