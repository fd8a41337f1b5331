# Everything runs in .venv, which is made from the lock (constraints.txt) the first time it is needed.

PYTHON ?= python3

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo study methods test check docs bench bench-long chaos lock clean

INSTALLED := .venv/.installed
# Tests reach no hub and upload nothing, whoever is logged in, and see what ftlab itself chooses for W&B.
# Where CI is set, pytest shows all of a difference: of two files of bytes it looks for the smallest one, for hours.
PYTEST := env -u CI -u WANDB_MODE -u WANDB_API_KEY NETRC=/dev/null HF_HUB_OFFLINE=1 .venv/bin/python -m pytest

help:  ## list the targets
	@sed -n 's/^\([a-z%-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(INSTALLED)  ## train and compare zero-shot, full, LoRA and QLoRA on what ships with ftlab
	HF_HUB_OFFLINE=1 .venv/bin/python scripts/demo.py

study: $(INSTALLED)  ## full, LoRA and QLoRA with several seeds, and a page: docs/results/demo; on E2E with NETWORK=DIR DATA=DIR
	HF_HUB_OFFLINE=1 .venv/bin/python scripts/study.py $(STUDY) $(if $(and $(NETWORK),$(DATA)), \
		--task e2e --network '$(NETWORK)' --data '$(DATA)',--task demo)

methods: $(INSTALLED)  ## train many methods alike and compare them; on E2E, too, with NETWORK=DIR DATA=DIR
	HF_HUB_OFFLINE=1 .venv/bin/python scripts/methods.py --task demo --jobs 2
	$(if $(and $(NETWORK),$(DATA)),HF_HUB_OFFLINE=1 .venv/bin/python scripts/methods.py --task e2e --jobs 2 \
		--network '$(NETWORK)' --data '$(DATA)')

chaos: $(INSTALLED)  ## kill, tear and starve runs, and compare what they come to: docs/results/chaos.md
	HF_HUB_OFFLINE=1 .venv/bin/python scripts/chaos.py --output docs/results/chaos.md

# On up to four cores, with one thread each: two workers with two threads stand in each other's way.
PARALLEL := -n auto --maxprocesses 4
ALONE := OMP_NUM_THREADS=1

test: check  ## check, then the default tests
	$(ALONE) $(PYTEST) $(PARALLEL) --dist loadfile

test-resume test-slow: OPTIONS := $(PARALLEL)
test-%: $(INSTALLED)  ## the tests of one marker: test-resume, test-slurm, test-slow, test-gpu
	$(ALONE) $(PYTEST) -m $* $(OPTIONS) || [ $$? -eq 5 ]  # 5: there are none

check: $(INSTALLED) docs  ## ruff (lint and format), mypy, and the site of docs/
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy ftlab

docs: $(INSTALLED)  ## the site of docs/, into site/: open site/index.html
	HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet

# BENCH_DATA has t0_mix and e2e, BENCH_TOKENIZER 32,000 words or more, BENCH_NETWORK is tiny: see scripts/bench_suite.py.
FOUND = $(if $(BENCH_DATA),--data '$(BENCH_DATA)') $(if $(BENCH_TOKENIZER),--tokenizer '$(BENCH_TOKENIZER)') \
	$(if $(BENCH_NETWORK),--network '$(BENCH_NETWORK)')
bench: BENCH ?= suite short --output docs/results $(FOUND)
bench-long: BENCH ?= suite long --output docs/results $(FOUND)
define BENCHMARK
	.venv/bin/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	HF_HUB_OFFLINE=1 .venv/bin/python scripts/benchmark.py $(BENCH)
endef

bench: $(INSTALLED)  ## beside peers, against goals, in 15 minutes; BENCH_DATA=DIR; a part alone: BENCH="training …"
	$(BENCHMARK)

bench-long: $(INSTALLED)  ## the same with 15 turns and more networks: hours
	$(BENCHMARK)

# To upgrade: .venv/bin/pip install --upgrade PACKAGE, then make lock, then make test.
lock:  ## write constraints.txt from what is installed in .venv
	{ sed '/^#/!d' constraints.txt; .venv/bin/pip freeze --exclude ftlab | sed 's/^\(torch==[^+]*\)+.*/\1/'; } > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean:  ## remove .venv and caches; runs stay
	rm -rf .venv ftlab.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find ftlab scripts tests -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ftlab needs Python 3.11 or later: name one, as in make PYTHON=python3.12" >&2; exit 1; }
	@[ -x .venv/bin/pip ] || $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) -m venv failed: on Debian and Ubuntu, install python3-venv first" >&2; exit 1; }
	@echo "Installing what constraints.txt names into .venv: some minutes the first time"
	@.venv/bin/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
