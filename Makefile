# `make quickstart` and `make test` are all that a newcomer needs; both set the environment up first.
VENV := .venv
BIN := $(VENV)/bin
# Test workers: one per core, at most 4; tests that start ranks use two cores by themselves.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; echo $$n)
TESTS ?= tests

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-clusters test-prep-kill test-recipes bench bench-prep lint typecheck check audit format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## Create or reuse .venv with the tested versions (PYTHON=... chooses the interpreter)
	@scripts/bootstrap

quickstart: install ## Distil a small encoder from the packaged sample corpus, in minutes
	@$(BIN)/distill run quickstart

test: install ## Unit, contract and two-rank tests (TESTS=... for a part)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not recipes and not kill and not clusters" $(TESTS)

test-prep-kill: install ## Preparations killed at each step and at random moments, and started again
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m kill tests/data_prep/test_kill.py

test-clusters: install ## Hosts as network namespaces, a real Slurm, a real MPI: links taken down, hosts killed (needs root)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m clusters tests/clusters

test-recipes: install ## Every recipe, made tiny, from text to exported student
	@$(BIN)/python -m pytest -n $(JOBS) tests/recipes

bench: install ## The step against its bars ([VOCAB=vocab.txt TEXTS="files"] [TINYBERT=, DISTILBERT= checkouts]); recorded
	@OMP_NUM_THREADS=1 timeout 1000 $(BIN)/python -m benchmarks.step $(TEXTS) --record docs/benchmarks.md \
		$(if $(VOCAB),--vocabulary $(VOCAB)) $(if $(TINYBERT),--tinybert $(TINYBERT)) $(if $(DISTILBERT),--distilbert $(DISTILBERT))

bench-prep: install ## Preparation against its bars (VOCAB=vocab.txt TEXTS="files of text or JSON lines", 20 MB of them; DATATROVE=a Python that has it)
	$(if $(and $(VOCAB),$(TEXTS)),,$(error say which: make bench-prep VOCAB=vocab.txt TEXTS="files of text or JSON lines"))
	@OMP_NUM_THREADS=1 timeout 900 $(BIN)/python -m benchmarks.prep $(VOCAB) $(TEXTS) $(if $(DATATROVE),--datatrove $(DATATROVE))

lint: install ## ruff
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

typecheck: install ## mypy, strict
	@$(BIN)/mypy

check: lint typecheck test ## Everything that CI checks, but the quickstart

audit: install ## Known holes in what is installed, by pip-audit, and a bill of materials (sbom.json)
	@$(BIN)/distill doctor --sbom sbom.json
	@[ -x $(BIN)/pip-audit ] || { echo "make audit needs pip-audit: $(BIN)/pip install 'pip-audit>=2.7,<3'" >&2; exit 1; }
	@$(BIN)/pip-audit --local --skip-editable

format: install ## Let ruff rewrite the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## Remove caches and build products (keeps .venv and runs/)
	@rm -rf build dist ./*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
