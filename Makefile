# Every target does its own set-up in .venv; a stamp there says what is installed, so that pip is
# called again only after a change of pyproject.toml, setup.py or the compiled sources.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard revgrad/_ext/*.pyx revgrad/_ext/*.pxd revgrad/_ext/*.h)

.PHONY: demo test test-gpu lint bench figures oracles clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

demo: $(VENV)/ready-examples
	$(BIN)/python examples/per_weight_l2.py $(ARGS)

test: $(VENV)/ready-examples,test
	$(BIN)/python -m pytest $(ARGS)

# On a machine with an NVIDIA GPU; CUDA=cuda13 for a driver of that series.
CUDA ?= cuda12
test-gpu: $(VENV)/ready-examples,test,$(CUDA)
	$(BIN)/python -m pytest tests/gpu $(ARGS)

lint: $(VENV)/ready-examples,test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

bench: $(VENV)/ready-examples,bench
	set -e; for file in $(wildcard benchmarks/bench_*.py); do $(BIN)/python $$file --quick $(ARGS); done

# All experiments of docs/reproduction.md at full size, hours; goes on where it was when killed.
figures: $(VENV)/ready-examples
	$(BIN)/python docs/make_reproduction.py --run $(ARGS)

# JAX and PyTorch, against which the oracle tests compare; `make test` skips those tests without them.
oracles: $(VENV)/ready-examples,test,oracle

# A stamp's name ends in the extras it stands for, each list beginning with the shorter ones, whose
# stamps are set as well.
$(VENV)/ready-%: $(SOURCES) | $(BIN)/python
	@echo "revgrad[$*]: installing into $(VENV), about a minute the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@have='$*'; touch "$(VENV)/ready-$$have"; \
	while [ "$$have" != "$${have%,*}" ]; do have=$${have%,*}; touch "$(VENV)/ready-$$have"; done

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("revgrad needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	rm -f revgrad/_ext/*.c revgrad/_ext/*.so revgrad/_ext/*.pyd
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
