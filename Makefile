# make reproduce   the whole investigation, headless, into runs/
# make test        the tests, except those marked slow
# make test-all    all tests
# make check       formatting, lint and types
# make lab         the notebooks in JupyterLab
# make reference   a new reference run, and its results in README.md
# make lock        new pins in requirements.lock
#
# Each target first installs the pins of requirements.lock into .venv.  ARGS is passed on to the program, for example
#   make reproduce ARGS="--profile full -p storage_dir=/mnt/nvme"

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

# Tests and notebooks start many processes, which would compile the package and the tests again each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: reproduce test test-all check lab reference lock clean

reproduce: $(INSTALLED)
	$(VENV)/bin/hicache-nixl reproduce $(ARGS)

# Two processes.  A module runs in one of them, since its tests may share fixtures.
PYTEST := $(VENV)/bin/pytest -n 2 --dist loadfile
test: $(INSTALLED)
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(INSTALLED)
	$(PYTEST) $(ARGS)

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Opens the first notebook, without JupyterLab's question about news.  Root is allowed, since that is the user in
# many containers; the server listens on 127.0.0.1 and requires its token.
LAB := --allow-root --LabApp.app_settings_dir=$(CURDIR)/notebooks/jupyter/settings \
  --LabApp.default_url=/lab/tree/01_reproduce_the_leak.ipynb --MappingKernelManager.transport_encryption=auto
lab: $(INSTALLED)
	$(VENV)/bin/jupyter lab $(LAB) $(ARGS) notebooks

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else \
	  "Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check -r requirements.lock
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# The results in README.md: a run of the quick profile.  Use an idle machine and a clean tree.
REFERENCE := data/reference
reference: $(INSTALLED)
	set -e; out=$$(mktemp); trap 'rm -rf "$$out" runs/reference' EXIT; rm -rf runs/reference; \
	$(VENV)/bin/hicache-nixl reproduce --run reference > "$$out"; \
	rm -rf $(REFERENCE); mkdir $(REFERENCE); sed '/^ *$$/d; s/ *$$//' "$$out" > $(REFERENCE)/reproduce.txt; \
	cp runs/reference/claims.csv runs/reference/provenance.json runs/reference/tables/*_ratios.csv \
	  runs/reference/tables/*_benchmarks.csv $(REFERENCE)/; \
	cp runs/reference/figures/03_before_and_after_hero.png $(REFERENCE)/hero.png; \
	sed -i -e '/^```text$$/,/^```$$/{//!d}' -e '/^```text$$/r $(REFERENCE)/reproduce.txt' README.md

# torch is pinned here: a range would install the newest CUDA build, which is several GB.
TORCH := torch==2.13.0
lock:
	set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(PYTHON) -m venv "$$dir/venv"; \
	"$$dir/venv/bin/pip" install --quiet --disable-pip-version-check "$(TORCH)" ".[lab,dev]"; \
	{ echo "# Made by 'make lock' on Python 3.11, Linux x86_64.  The pins of .venv, environment.yml and CI."; \
	  "$$dir/venv/bin/pip" freeze --exclude hicache-nixl | sed 's/+cpu$$//'; } > "$$dir/lock"; \
	mv "$$dir/lock" requirements.lock

clean:
	rm -rf $(VENV) runs
