# make demo   trains the small model of configs/pretrain.py on drawn scenes: workdirs/demo/report/index.html
# make test   ruff and pytest, the same that .ci/run does
# make docs   builds the documentation into site/; every warning is an error
#
# Each makes .venv first if it is not there, from any Python >= 3.11. To choose one: make test PYTHON=python3.12
# Part of the tests: make test PYTEST_FLAGS="-k batch"

PYTHON ?=
PYTEST_FLAGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
PACKAGES := setup.cfg pyproject.toml

.PHONY: demo test docs clean help
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

# glibc keeps what is freed: giving hundreds of megabytes back and asking again costs a fifth of each update.
demo: export MALLOC_MMAP_THRESHOLD_ = 8589934592
demo: export MALLOC_TRIM_THRESHOLD_ = 17179869184
demo: $(VENV)/.installed
	$(RUN) -m vlbert_jax.main --config=configs/pretrain.py --workdir=workdirs/demo

test: $(VENV)/.installed-test
	$(RUN) -m ruff check .
	$(RUN) -m pytest -n auto --maxprocesses 8 --dist loadfile $(PYTEST_FLAGS)

# NO_MKDOCS_2_WARNING: the theme prints an advertisement otherwise.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.installed-docs
	$(RUN) -m mkdocs build --strict --quiet
	@echo site/index.html

# A name on the PATH can be a stub that fails, so each is run. ensurepip: Debian packs it apart, as python3-venv.
$(VENV)/bin/python:
	@check='import ensurepip, sys, venv; assert sys.version_info >= (3, 11)'; \
	for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python); do \
	  if "$$python" -c "$$check" >/dev/null 2>&1; then \
	    echo "$(VENV): $$("$$python" --version), from $$python"; \
	    exec "$$python" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "No Python >= 3.11 with venv and ensurepip among: $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python)." >&2; \
	echo "Install one (on Debian and Ubuntu with its -venv package), or name it: make PYTHON=/path/to/python" >&2; \
	exit 1

# The stamps are newer than setup.cfg when what it asks for is installed.
$(VENV)/.installed: $(PACKAGES) | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(PACKAGES) | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check --quiet --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(PACKAGES) | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check --quiet --editable '.[docs]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build site *.egg-info
