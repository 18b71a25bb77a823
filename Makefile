# make demo          trains the small model of configs/pretrain.py on synthetic scenes: workdirs/demo/report/index.html
# make assets        trains the demo, fine-tunes it, and writes the models that ship with the package
# make test          runs ruff, basedpyright and the tests that are neither slow nor comparisons with the official code
# make test-slow     runs the tests that are marked as slow; .ci/run runs them and test-exact as well
# make test-exact    runs the comparisons with the official code (golden_test.py)
# make test-storage  runs the tests of runs in buckets, and of builds by Apache Beam; it installs Beam and emulators of S3
#                    and GCS
# make test-lowest   runs pytest with the lowest versions that setup.cfg allows, in .venv-lowest
# make faults        kills the demo recipe, shrunk, at random moments: tests/faults/results.jsonl (FAULTS_FLAGS=--rows=100);
#                    kills and stops processes of a run of two: tests/faults/two_processes.jsonl; fills the disk of a small
#                    run: tests/faults/full_disk.jsonl; asks models for an hour: tests/faults/soak.jsonl
# make fuzz          gives damaged files to every reader: tests/faults/fuzz.jsonl (FUZZ_FLAGS="--inputs=2000 --seed=1")
# make bench         installs PyTorch and torchvision into .venv-bench and compares the speed with theirs
#                    (BENCH_FLAGS="--recipes=base_prec --rounds=3")
# make test-science  trains the small form of the ablation (experiments/) in workdirs/science, 12 minutes; remove that
#                    folder to train again
# make docs          builds the documentation into site/; every warning is an error
# make clean         removes the environments and what was built
#
# Each target first makes its environment from a Python >= 3.11. To choose one: make test PYTHON=python3.12
# To run a part of the tests: make test PYTEST_FLAGS="-k batch"

PYTHON ?=
PYTEST_FLAGS ?=
FAULTS_FLAGS ?=
FUZZ_FLAGS ?=
BENCH_FLAGS ?=
PYTEST_WORKERS := -n auto --maxprocesses 8 --dist loadfile
VENV := .venv
RUN := $(VENV)/bin/python
PACKAGES := setup.cfg pyproject.toml

.PHONY: demo assets test test-slow test-exact test-storage test-lowest test-science faults fuzz bench docs clean help
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed
	$(RUN) -m vlbert_jax.main --config=configs/pretrain.py --workdir=workdirs/demo

assets: demo
	for config in vqa refcoco classify classify:demo_pairs retrieval caption; do \
	  $(RUN) -m vlbert_jax.main --config=$$config --config.init.checkpoint=workdirs/demo || exit; \
	done
	$(RUN) benchmarks/assets.py

# Tests compile with few optimizations, to save time (tests/conftest.py). The comparisons with the official code compile
# as users do: they are a part of their own. pytest's status 5 says that PYTEST_FLAGS chooses no test.
test: $(VENV)/.installed-test
	$(RUN) -m ruff check .
	$(RUN) -m basedpyright --pythonpath $(RUN)
	$(RUN) -m pytest $(PYTEST_WORKERS) --ignore-glob='*golden_test.py' -m 'not slow' $(PYTEST_FLAGS) || [ $$? -eq 5 ]

test-slow: $(VENV)/.installed-test
	$(RUN) -m pytest $(PYTEST_WORKERS) --ignore-glob='*golden_test.py' -m slow $(PYTEST_FLAGS) || [ $$? -eq 5 ]

test-exact: export VLBERT_DEFAULT_XLA = 1
test-exact: $(VENV)/.installed-test
	$(RUN) -m pytest $(PYTEST_WORKERS) $(shell find tests -name '*golden_test.py') $(PYTEST_FLAGS) || [ $$? -eq 5 ]

test-storage: $(VENV)/.installed-storage
	$(RUN) -m pytest $(PYTEST_WORKERS) tests/storage tests/data_prep/beam_test.py $(PYTEST_FLAGS) || [ $$? -eq 5 ]

# The lowest versions that the tests were run with have wheels for Python 3.11.
test-lowest:
	$(MAKE) VENV=.venv-lowest PYTHON=$(or $(PYTHON),python3.11) .venv-lowest/.installed-lowest
	.venv-lowest/bin/python -m pytest $(PYTEST_WORKERS) $(PYTEST_FLAGS)

faults: $(VENV)/.installed-test
	$(RUN) -m tests.faults.kills $(FAULTS_FLAGS)
	$(RUN) -m tests.faults.two_processes $(FAULTS_FLAGS)
	$(RUN) -m tests.faults.full_disk $(FAULTS_FLAGS)
	$(RUN) -m tests.faults.soak

fuzz: $(VENV)/.installed-test
	$(RUN) -m tests.faults.fuzz $(FUZZ_FLAGS)

bench:
	$(MAKE) VENV=.venv-bench .venv-bench/.installed-bench
	.venv-bench/bin/python benchmarks/peers.py $(BENCH_FLAGS)

test-science: $(VENV)/.installed-experiments
	$(RUN) -m experiments.run ablation --small $(foreach folder,results pages workdirs,--$(folder)=workdirs/science)

# NO_MKDOCS_2_WARNING: the theme prints an advertisement otherwise.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.installed-docs
	$(RUN) -m mkdocs build --strict --quiet
	@echo site/index.html

# A name on the PATH can be a stub that fails, so each candidate is run. Debian has ensurepip in the package python3-venv.
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

# A stamp that is newer than setup.cfg says that the requirements are installed.
$(VENV)/.installed: $(PACKAGES) | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(PACKAGES) | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check --quiet --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-storage: $(VENV)/.installed-test
	$(RUN) -m pip install --disable-pip-version-check --quiet uv
	$(RUN) -m uv pip install --quiet --python $(RUN) --editable '.[test,emulators,beam]'
	@touch $@

$(VENV)/.installed-experiments: $(PACKAGES) | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check --quiet --editable '.[experiments]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(PACKAGES) | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check --quiet --editable '.[docs]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: $(PACKAGES) | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check --quiet --editable '.[bench]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-lowest: $(PACKAGES) | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check --quiet uv
	$(RUN) -m uv pip compile --quiet --no-deps --resolution=lowest-direct --extra=test setup.cfg --output-file=$(VENV)/lowest.txt
	$(RUN) -m pip install --disable-pip-version-check --quiet --editable '.[test]' --constraint $(VENV)/lowest.txt
	@touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-bench build site *.egg-info
