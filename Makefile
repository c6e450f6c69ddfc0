# `make quickstart` and `make test` need Python 3.11 or later and nothing else; each makes its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test check bench docs notebooks faults libraries wheels clean

quickstart: $(VENV)/.installed
	@n=1; while [ -e reports/quickstart-$$n/results.json ]; do n=$$((n + 1)); done; \
	echo "Routing digits: PPO and the paper's DQN beside rules, static paths and the exact optimum. Three to five minutes on 2 cores."; \
	$(BIN)/rnr-gym compare RNR-Digits-v0 --agents random static blind confidence thresholds fqi rnr-dqn ppo \
		--out reports/quickstart-$$n

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --durations=10
	@echo "All tests passed. Next: make quickstart, or $(BIN)/rnr-gym --help"

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check rnr_gym tests benchmarks docs notebooks/run.py
	$(BIN)/ruff check rnr_gym tests benchmarks docs notebooks/run.py
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/throughput.py

# Runs all notebooks and stores their outputs in them. A few minutes on two cores.
notebooks: $(VENV)/.installed-dev
	$(BIN)/python notebooks/run.py

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -e '.[dev]'
	@touch $@ $(VENV)/.installed

docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -W -n --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Installs other people's libraries, each into an environment that sees this one's packages, and trains with them:
# two gigabytes, ten minutes on two cores.
libraries: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/libraries.py --base $(BIN)/python

faults: $(VENV)/.installed-dev
	$(BIN)/python -m tests.drills.faults

# The wheel in an empty environment of each Python of 3.11 to 3.13 that is there.
wheels: $(VENV)/.installed-dev
	$(BIN)/python -m tests.drills.wheels

clean:
	rm -rf $(VENV) build dist docs/_build docs/generated .mypy_cache .ruff_cache .pytest_cache
