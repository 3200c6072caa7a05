# make demo | test | lint | lock | clean | distclean; the first call makes an environment in $(VENV).
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV := .venv-uv/bin/uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate --quiet

# Compiled programs are kept between runs.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.3

.PHONY: demo test lint format lock clean distclean

demo: $(VENV)/.runtime
	@$(BIN)/rdp demo $(ARGS)

# In the order of their names: by default files of few tests come last, which are our slowest.
test: lint
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "rdp-jax needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }

$(VENV)/.runtime: requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) -r requirements.lock
	$(PIP) --no-deps --editable .
	@touch $@

# A superset of the runtime.
$(VENV)/.dev: requirements-dev.lock requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) -r requirements-dev.lock
	$(PIP) --no-deps --editable .
	@touch $(VENV)/.runtime $@

# Versions stay as they are where they can; `make lock UPGRADE=--upgrade` takes the newest.
lock:
	@test -x .venv-uv/bin/uv || { $(PYTHON) -m venv .venv-uv && .venv-uv/bin/pip install --quiet uv; }
	$(UV) $(UPGRADE) pyproject.toml --output-file requirements.lock
	$(UV) $(UPGRADE) pyproject.toml --extra dev --constraints requirements.lock --output-file requirements-dev.lock

clean:
	rm -rf .cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find benchmarks envs rdp_jax tests tools train -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .venv-uv
