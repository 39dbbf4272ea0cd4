# "make" alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# More arguments for the program of a target, as in: make test ARGS="-k sftp"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo test faults lint audit format docs bench clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

venv: $(VENV)/.dev ## make .venv with MiStaMover and all that its developers use

demo: $(VENV)/.run ## move a small spool, verified, and show the record
	@conf/demo.sh

test: $(VENV)/.dev ## run all tests, with real servers (ARGS="-k sftp")
	@tests/servers.sh
	@$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

faults: $(VENV)/.dev ## try to lose a file: all tests of faults, also the long ones (FAULTS_HOURS=8, FAULTS_SEED=4711)
	@tests/servers.sh
	@$(BIN)/python -m pytest -n 3 --dist worksteal -m 'campaign or not campaign' tests/faults $(ARGS)

lint: $(VENV)/.dev ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

audit: $(VENV)/.dev ## ask PyPI for known faults of the packages in .venv
	@$(PIP) install pip-audit
	@$(BIN)/python -m pip freeze --exclude-editable --local | \
	    $(BIN)/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r /dev/stdin

format: $(VENV)/.dev ## bring the code into its form
	@$(BIN)/ruff check --fix --exit-zero .
	@$(BIN)/ruff format .

docs: $(VENV)/.run ## write the samples in conf/ and what docs/ has from the program anew
	@$(BIN)/python -m mistamover.describe sample-global >conf/global.ini.new && mv conf/global.ini.new conf/global.ini
	@$(BIN)/python -m mistamover.describe sample-stream >conf/stream.ini.new && mv conf/stream.ini.new conf/stream.ini
	@$(BIN)/python -m mistamover.describe reference >docs/configuration.rst.new && mv docs/configuration.rst.new docs/configuration.rst
	@$(BIN)/python -m tests.mails

bench: $(VENV)/.run ## time MiStaMover against its peers; as root (ARGS="--sets small --runs 1")
	@tests/servers.sh openssh-server openssh-client rsync lftp rclone proftpd-core proftpd-mod-crypto openssl
	@$(BIN)/python -m benchmarks.bench $(ARGS)

clean: ## remove what the other targets made, but for .venv and the results of bench
	@rm -rf build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Stamps: the work is done again only when what is to be installed has changed.
$(VENV)/.run: pyproject.toml setup.py | $(BIN)/pip
	@echo "installing MiStaMover into $(VENV)"
	@$(PIP) install -e .
	@touch $@

$(VENV)/.dev: pyproject.toml setup.py | $(BIN)/pip
	@echo "installing MiStaMover and its developers' tools into $(VENV)"
	@$(PIP) install -e '.[dev]'
	@touch $@ $(VENV)/.run

$(BIN)/pip:
	@command -v '$(PYTHON)' >/dev/null || \
	    { echo "MiStaMover needs Python 3.11 or later; '$(PYTHON)' is not there: make PYTHON=/path/to/python3 ..."; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "MiStaMover needs Python 3.11 or later; this is $$('$(PYTHON)' -V 2>&1): make PYTHON=python3.11 ..."; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "'$(PYTHON)' cannot make a virtual environment: apt-get install python3-venv"; exit 1; }
	@'$(PYTHON)' -m venv $(VENV)
