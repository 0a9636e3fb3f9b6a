# Everything runs in .venv, which the first target that needs it makes.
#   make train   the main job on built-in voices      make test   the tests
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
# Hundreds of processes import torch: it is compiled once.
unexport PYTHONDONTWRITEBYTECODE
# Small operations on contended cores are slower with more threads than with one.
TEST   := OMP_NUM_THREADS=1 $(RUN) -m pytest

.PHONY: train test test-slow test-cuda soak fuzz lint format benchmarks studies-check clean

train: $(VENV)/.ready
	$(RUN) -m spkexp.train $(ARGS)

test: $(VENV)/.ready-dev
	$(TEST) -n auto --dist worksteal $(ARGS)

test-slow: $(VENV)/.ready-dev
	$(TEST) -n 2 -m slow $(ARGS)

# One process: it compiles each Triton kernel once, and has the card to itself.
test-cuda: $(VENV)/.ready-dev
	$(TEST) -m cuda tests/cuda $(ARGS)

# Kills training a hundred times and compares what comes out with the same training left alone: a quarter of an hour.
soak: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(RUN) -m tests.faults.soak $(ARGS)

# Damaged files of every kind that is read, SECONDS of each; fuzz-findings/ keeps what brings a reader down.
fuzz: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(RUN) -m tests.fuzz seconds=$(or $(SECONDS),60) $(ARGS)

lint: $(VENV)/.ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.ready-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

benchmarks: $(VENV)/.ready-dev
	for program in benchmarks/*.py; do $(RUN) $$program || exit 1; done

# Which tables of experiments/ are older than the code and the configs that they depend on.
studies-check: $(VENV)/.ready-dev
	$(RUN) experiments/tables.py check

clean:
	rm -rf $(VENV)

# uv makes this a matter of seconds; where it cannot be had, pip does the same.
define install
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check uv || true
	if $(RUN) -m uv --version >/dev/null 2>&1; then \
	    $(RUN) -m uv pip install --quiet --python $(RUN) -c constraints.txt -e "$(1)"; \
	else \
	    $(RUN) -m pip install --quiet -c constraints.txt -e "$(1)"; \
	fi
	touch $@
endef

$(VENV)/.ready: pyproject.toml constraints.txt
	$(call install,.)

$(VENV)/.ready-dev: pyproject.toml constraints.txt
	$(call install,.[dev])
	touch $(VENV)/.ready
