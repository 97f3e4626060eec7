# Every target makes the environment it needs; changing pyproject.toml or constraints.txt makes it anew.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
BENCH_ARGS ?=
FAULTS_ARGS ?=

BIN := $(VENV)/bin
# Bytecode is written when a module is first imported, which is less work than compiling all of it now.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile --quiet -c constraints.txt
DEPENDENCY_FILES := pyproject.toml constraints.txt

.PHONY: help demo test faults lint bench clean

help:
	@echo "make demo    train a small swarm of SmolLM2-135M and show what it learned (minutes)"
	@echo "make test    run the default tests; PYTEST_ARGS='-m slow' runs the long ones"
	@echo "make faults  measure what the swarm withstands (about an hour); FAULTS_ARGS goes to python -m scripts.faults"
	@echo "make lint    check style, format and types"
	@echo "make bench   time our rounds and torch's (an hour and a half); BENCH_ARGS goes to scripts/bench_round.py"
	@echo "make clean   remove the environment and all caches; runs/ stays"
	@echo "variables    PYTHON=$(PYTHON) (3.11 or newer)  VENV=$(VENV)"

demo: $(VENV)/.installed-run
	$(BIN)/python -m sapo_jax.main --config=configs/smollm2_135m.py --workdir=runs/demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

faults: $(VENV)/.installed-run
	$(BIN)/python -m scripts.faults $(FAULTS_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.installed-test
	$(BIN)/python scripts/bench_round.py --write=BENCHMARKS.md --picture=docs/roofline.png $(BENCH_ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp per set of packages. A larger set contains the smaller ones and stamps them too.
$(VENV)/.installed-run: $(DEPENDENCY_FILES) | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(DEPENDENCY_FILES) | $(BIN)/python
	$(PIP_INSTALL) -e '.[test]'
	@touch $(VENV)/.installed-run $@

$(VENV)/.installed-dev: $(DEPENDENCY_FILES) | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed-run $(VENV)/.installed-test $@
