# Every target is also a CI step. PYTHON can be set: make demo PYTHON=/path/to/python3.11
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
SHELL := /bin/bash
export OMP_NUM_THREADS ?= 1

.PHONY: demo demo-screen test test-slurm test-full lint type benchmark clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first: the pin takes the build that fits this machine, and nothing later pulls another one
$(VENV)/.core: setup.py constraints.txt | $(BIN)/python
	$(PIP) --upgrade pip "setuptools<81" wheel
	$(PIP) torch==2.13.0
	$(PIP) -e ".[mpi-wheel]"
	touch $@

$(VENV)/.all: $(VENV)/.core
	$(PIP) -e ".[mpi-wheel,train,uma,dev]"
	touch $@

demo: $(VENV)/.core
	$(BIN)/promof design promof_hpc/configs/demo.yaml --run runs/demo

demo-screen: $(VENV)/.core
	$(BIN)/promof screen demo --run runs/demo-screen --ranks 2

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.all
	$(BIN)/mypy

test: lint type
	$(BIN)/python -m pytest -m "not full and not slurm"
	@echo "The tests on a Slurm of their own were left out: make test-slurm installs Debian's packages (root) and runs them."

# installs Debian's Slurm packages, which needs root; the tests start and stop a cluster of their own
test-slurm: $(VENV)/.all
	tests/slurm/install.sh
	PROMOF_REQUIRE_SLURM=1 $(BIN)/python -m pytest -m "slurm and not full"

# hours; installs what test-slurm installs
test-full: $(VENV)/.all
	tests/slurm/install.sh
	set -o pipefail; $(BIN)/python -m pytest -m "full and not slurm" -s -v --disable-warnings 2>&1 | tee docs/results/test-full.log
	set -o pipefail; PROMOF_REQUIRE_SLURM=1 $(BIN)/python -m pytest tests/slurm/test_faults.py -v --disable-warnings 2>&1 \
		| tee docs/results/fault-matrix.log
	set -o pipefail; PROMOF_REQUIRE_SLURM=1 $(BIN)/python -m pytest -m "full and slurm" \
		--ignore=tests/slurm/test_faults.py -s -v --disable-warnings 2>&1 | tee docs/results/test-slurm-full.log

# farm_scaling takes its costs from a screening; toy_world.py takes hours and is started by itself
benchmark: export PYTHONPATH := .
benchmark: $(VENV)/.all
	[ -d runs/demo-screen ] || $(MAKE) demo-screen
	set -e -o pipefail; for name in relax pores snap checkpoint "farm_scaling runs/demo-screen"; do \
		set -- $$name; $(BIN)/python benchmarks/$$1.py $${@:2} | tee docs/results/benchmark-$${1/_/-}.log; done

clean:
	rm -rf $(VENV) build *.egg-info
