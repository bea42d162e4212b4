# SPDX-License-Identifier: GPL-2.0-or-later
# `make` says what there is.  Everything is kept in .venv, which `make clean` removes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet
PYTEST_ARGS ?= -ra

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test bench selftests soak oracle clean conformance

help:
	@echo 'make demo   set up .venv, then launch an SNP guest on the emulated host (gmemu launch snp)'
	@echo 'make test   set up .venv, then ruff, mypy and the tests'
	@echo 'make conformance  this machine'"'"'s KVM against the emulation: all cases, and some thousand random calls'
	@echo 'make bench  the figures: digest, conversion, import time'
	@echo 'make selftests  the kernel'\''s own KVM selftests that have to pass under gmemu exec; with ALL=1 all, into tests/exec/RESULTS.md'
	@echo 'make soak   ten minutes of conversions, faults and failures on order under gmemu exec'
	@echo 'make oracle build real kernels (some minutes each), and record anew what they and this machine do'
	@echo 'make clean  remove .venv and what the tools left'

demo: $(VENV)/.installed
	@$(BIN)/gmemu launch snp

test: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest $(PYTEST_ARGS)

# Exit code 4 says that this machine has no KVM to compare with; the reason is printed.
conformance: $(VENV)/.installed-test
	$(BIN)/gmemu conform --backend host || test $$? -eq 4
	$(BIN)/gmemu conform fuzz --backend host --seed 1 --steps 6000 --jobs 2 || test $$? -eq 4

bench: $(VENV)/.installed-test
	$(BIN)/python -m bench

# Those that have to pass; ALL=1 runs every one, and writes RESULTS.md.  Exits with 4 where Linux's source or a compiler
# can't be had, which is no failure of ours.
ALL ?=
selftests: $(VENV)/.installed-test
	$(BIN)/python -m tests.exec.selftests $(if $(ALL),--all) || test $$? -eq 4

SOAK_SECONDS ?= 600
soak: $(VENV)/.installed-test
	$(BIN)/python -m tests.exec.soak --seconds $(SOAK_SECONDS)

# What each recording differs in from the emulation is printed, and doesn't stop the rest; nor does a machine without /dev/kvm.
GOLDEN := tests/conformance/golden
ORACLES := 6.12 7.3

oracle: $(VENV)/.installed
	for v in $(ORACLES); do \
	  $(BIN)/python -m gmemu.conformance.vm.build --version $$v || exit; \
	  $(BIN)/gmemu conform --backend vm --kernel $$v --record $(GOLDEN)/vm-$$v.json || test $$? -eq 1 || exit; \
	done
	$(BIN)/gmemu conform --backend host --record $(GOLDEN)/host-$$(uname -r | cut -d. -f1,2).json || test $$? -eq 1 -o $$? -eq 4

clean:
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'gmemu needs Python 3.11 or newer, and $(PYTHON) is none: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@echo 'setting up $(VENV) ...'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo 'no virtual environment could be made with $(PYTHON): install its venv package (Debian: python3-venv)' >&2; exit 1; }
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.made
	@$(PIP) install --editable '.[test]'
	@touch $@ $(VENV)/.installed
