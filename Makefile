# Two commands do all the set-up: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
DEVICE ?= cpu

.PHONY: demo serve test test-gpu test-slow test-full check format bench-http bench-swap bench-addressing bench-gpu clean

# The environment with what the platform needs to run.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -U pip setuptools
	$(PIP) install -q -c constraints.txt torch==2.13.0
	$(PIP) install -q -c constraints.txt -e '.[s3,postgres]'
	touch $@

# And with what developing it needs.
$(VENV)/developed: $(VENV)/installed
	$(PIP) install -q -c constraints.txt --group dev --group bench
	touch $@

# ARGS=--once ends the platform after the demonstration.
demo: $(VENV)/installed
	$(BIN)/asset-orchestrator demo $(ARGS)

serve: $(VENV)/installed
	$(BIN)/asset-orchestrator serve $(ARGS)

test: $(VENV)/developed
	$(PYTEST) $(ARGS)

# The engine's self-check on a device: DEVICE=cuda on a machine with a GPU.
test-gpu: $(VENV)/developed
	$(PYTEST) --noconftest -q tests/gpu --device $(DEVICE)

test-slow: $(VENV)/developed
	$(PYTEST) -m slow $(ARGS)
	$(if $(ARGS),,$(MAKE) test-gpu)

# Before a release: the whole crash table, the SDKs in their own environments, a short soak.
test-full: $(VENV)/developed
	$(PYTEST) -m full $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m benchmarks soak --minutes 15 --out $(VENV)/soak.json --plot $(VENV)/soak.png)

check: $(VENV)/developed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell

format: $(VENV)/developed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-http: $(VENV)/developed
	$(BIN)/python -m benchmarks http $(ARGS)

bench-swap: $(VENV)/developed
	$(BIN)/python -m benchmarks swap $(ARGS)

bench-gpu: $(VENV)/developed
	$(BIN)/python -m benchmarks gpu $(ARGS)

bench-addressing: $(VENV)/developed
	$(BIN)/python -m benchmarks addressing $(ARGS)

clean:
	rm -rf $(VENV) demo build *.egg-info
