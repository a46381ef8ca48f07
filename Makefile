# Everything runs as root on Debian 12; `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= /usr/bin/python3
BIN := .venv/bin
SOURCES := fabric bgp policy tests

# What the labs and tests run besides Python: real routers, a real etcd, the tools of the kernel.
APT := python3 python3-venv python3-dev gcc iproute2 iptables ipset nftables conntrack iputils-ping procps \
	kmod util-linux etcd-server etcd-client frr bird2 tcpdump containernetworking-plugins groff-base \
	graphviz gobgpd iperf3 user-mode-linux

.PHONY: help setup demo test uml check bench fuzz man fmt clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: .venv/.ready ## install what is missing: Debian packages, then .venv

.venv/.ready: pyproject.toml
	@tests/setup-host.sh $(APT)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "setup: Python packages into .venv"
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet -e '.[dev,plots]'
	@touch $@

demo: setup ## two racks, each with two real ToRs: reach, cut a link, kill a ToR, measure; a policy
	@$(BIN)/python -m tests.demo

test: setup ## all tests, ring by ring
	@$(BIN)/python -m tests.rings

uml: setup ## the tests of what this kernel may lack (IPIP), in user-mode Linux
	@$(BIN)/pytest -q tests/uml

check: setup ## format, lint, types, layers, unit tests
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n 2 tests/unit

bench: setup ## the benchmarks, each beside its peer in one run
	@$(BIN)/python -m tests.bench.attach
	@$(BIN)/python -m tests.bench.parallel
	@$(BIN)/python -m tests.bench.labs
	@$(BIN)/python -m tests.bench.bgp
	@$(BIN)/python -m tests.bench.policy
	@$(BIN)/python -m tests.bench.tunnels

fuzz: setup ## random policies and packets, evaluator against kernel, FUZZ_SECONDS long; FUZZ_SEED repeats a run
	@export FUZZ_SEED="$${FUZZ_SEED:-$$RANDOM$$RANDOM}" FUZZ_SECONDS="$${FUZZ_SECONDS:-300}"; \
	echo "fuzz: FUZZ_SEED=$$FUZZ_SEED, $$FUZZ_SECONDS s"; \
	$(BIN)/pytest -q -n 2 --timeout 0 -k agree tests/contract/test_policy_kernel.py

man: setup ## the man page, build/fabricctl.1, from the help texts
	@mkdir -p build
	@$(BIN)/python -m fabric.cli.manual >build/fabricctl.1

fmt: setup ## format and mend what can be mended
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean: ## remove what setup and the tools left in this folder
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
