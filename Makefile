# make reproduce   the whole investigation, headless, into runs/
# make test        the tests, except those marked slow
# make test-all    all tests, except those with real servers
# make check       formatting, lint and types
# make lab         the notebooks in JupyterLab
# make test-server the tests with real SGLang servers; installs 3.5 GB once
# make test-pythons the tests of the connector, with the other supported Pythons that are installed
# make reference   a new reference run, and its results in README.md and docs/
# make lock        new pins in requirements.lock
#
# Each target first installs the pins of requirements.lock into .venv.  ARGS is passed on to the program, for example
#   make reproduce ARGS="--profile full -p storage_dir=/mnt/nvme"

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

# Tests and notebooks start many processes, which would compile the package and the tests again each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: reproduce test test-all test-server test-pythons check lab reference lock clean

reproduce: $(INSTALLED)
	$(VENV)/bin/hicache-nixl reproduce $(ARGS)

# Two processes.  A module runs in one of them, since its tests may share fixtures.
PYTEST := $(VENV)/bin/pytest -n 2 --dist loadfile
test: $(INSTALLED)
	$(PYTEST) -m "not slow and not server" $(ARGS)

test-all: $(INSTALLED)
	$(PYTEST) $(ARGS)

# One process, since a server takes 2 GB and both cores.  Where nothing can be installed, the tests are skipped with the reason.
SERVERS := 0.5.11 0.5.23
test-server: $(INSTALLED)
	-$(VENV)/bin/hicache-nixl server install $(SERVERS)
	$(VENV)/bin/pytest -m server tests/lab/server tests/controllers $(ARGS)

# The other supported Pythons, each with its own .venv-VERSION.  PYENV_VERSION lets pyenv's shims find them.
OTHER_PYTHONS := 3.12 3.13
test-pythons:
	set -e; for version in $(OTHER_PYTHONS); do \
	  export PYENV_VERSION=$$version; \
	  if python$$version -c "" 2> /dev/null; then \
	    $(MAKE) test PYTHON=python$$version VENV=.venv-$$version ARGS="$(or $(ARGS),$(CONNECTOR_TESTS))"; \
	  else echo "Python $$version is not installed, so it is not tested"; fi; \
	done
CONNECTOR_TESTS := tests/contract tests/lifetimes tests/transport tests/host tests/test_interrupts.py

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Opens the first notebook, without JupyterLab's question about news.  Root is allowed, since that is the user in
# many containers; the server listens on 127.0.0.1 and requires its token.
LAB := --allow-root --LabApp.app_settings_dir=$(CURDIR)/notebooks/jupyter/settings \
  --LabApp.default_url=/lab/tree/01_reproduce_the_leak.ipynb --MappingKernelManager.transport_encryption=auto
# What it saves into a notebook (outputs, numbers of cells, the version of Python) makes no difference to git: a filter of
# this clone, for which .gitattributes names the files, removes it from what git compares and commits.  At the end git
# takes note of the new sizes of such files, since "git status" would call them modified until then.
ADDED := $(addprefix metadata.language_info.,codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer version)
STRIP := $(abspath $(VENV))/bin/nbstripout
FILTER := if [ -x "$(STRIP)" ]; then "$(STRIP)" --extra-keys "$(ADDED)"; else cat; fi
lab: $(INSTALLED)
	if [ -e .git ]; then git config filter.hicache-nixl-notebook.clean '$(FILTER)'; fi
	trap : INT TERM; $(VENV)/bin/jupyter lab $(LAB) $(ARGS) notebooks; ended=$$?; \
	if [ -e .git ]; then for file in notebooks/*.ipynb; do \
	  if git diff --quiet -- "$$file"; then git add -- "$$file"; fi; done; fi; exit $$ended

# torch comes first, from the index of its CPU builds: PyPI has the CUDA build, with which .venv takes 6.2 GB instead of 2.4.
# pip then keeps it, since the version is the same.  "make TORCH_INDEX=" leaves the choice to pip.
TORCH := torch==2.13.0
TORCH_INDEX := https://download.pytorch.org/whl/cpu
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else \
	  "Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@[ -z "$(TORCH_INDEX)" ] || { echo "installing $(TORCH) from $(TORCH_INDEX) (0.2 GB) ..."; \
	  $(VENV)/bin/pip install --quiet --disable-pip-version-check --retries 0 --timeout 15 --no-deps \
	  --index-url $(TORCH_INDEX) $(TORCH) > /dev/null 2>&1; } || echo "... not available there; pip takes its own index's build"
	$(VENV)/bin/pip install --disable-pip-version-check -r requirements.lock
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(VENV)/bin/python -c "import hicache_nixl.lifetimes.pooled.lifetime"  # compiles its loops, once
	touch $@

# The reference run: quick profile, then real servers.  Use an idle machine and a clean tree.
reference: $(INSTALLED)
	set -e; printed=$$(mktemp); runs="runs/reference runs/reference-server"; \
	trap 'rm -rf "$$printed" $$runs' EXIT; rm -rf $$runs; \
	$(VENV)/bin/hicache-nixl reproduce --run reference > "$$printed"; \
	$(VENV)/bin/hicache-nixl reproduce --run reference-server --profile server; \
	$(VENV)/bin/python docs/build.py runs/reference "$$printed" runs/reference-server

lock:
	set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(PYTHON) -m venv "$$dir/venv"; \
	"$$dir/venv/bin/pip" install --quiet --disable-pip-version-check "$(TORCH)" ".[lab,dev]"; \
	{ echo "# Made by 'make lock' on Python 3.11, Linux x86_64.  The pins of .venv, environment.yml and CI."; \
	  "$$dir/venv/bin/pip" freeze --exclude hicache-nixl | sed 's/+cpu$$//'; } > "$$dir/lock"; \
	mv "$$dir/lock" requirements.lock

clean:
	rm -rf $(VENV) $(addprefix .venv-,$(OTHER_PYTHONS)) runs
