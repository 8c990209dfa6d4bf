# Every task of this project. `make help` lists them; each does its own set-up, and needs only Python >= 3.11 and make.
SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MEMBERS := $(sort $(wildcard libs/*/pyproject.toml services/*/pyproject.toml))
STAMP := $(VENV)/.installed
CI_ARGS := $(if $(CI),-q,)
COMPILE := $(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header

help: ## list the targets
	@if [ -t 1 ]; then on='\033[36m' off='\033[0m'; fi; \
	  awk -v on="$$on" -v off="$$off" -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %s%-20s%s %s\n", on, $$1, off, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything that demo, run, test and bench need

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than 3.11; name another one: make PYTHON=python3.12 …" >&2; exit 1; }
	@echo "→ making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "make: this Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@touch $@

$(STAMP): $(VENV)/.python locks/uv.txt locks/dev.txt $(MEMBERS)
	@echo "→ installing the locked packages (once; a few minutes on a slow line)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/uv.txt
	@$(BIN)/uv pip sync --python $(BIN)/python --require-hashes locks/dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation \
	  $(foreach m,$(MEMBERS),-e $(patsubst %/pyproject.toml,./%,$(m)))
	@touch $@

lock: $(VENV)/.python ## compile locks/*.txt anew from the pyproject files
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo uv | $(COMPILE) --python-version 3.11 - -o locks/uv.txt
	@$(COMPILE) --python-version 3.11 --all-extras --group dev --group bench \
	  --no-emit-package handler-core --no-emit-package handlers-cli $(MEMBERS) pyproject.toml -o locks/dev.txt
	@$(MAKE) --no-print-directory lock-images

check: $(STAMP) ## lint, formatting, types, dependency directions
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy -p benchmarks
	@$(BIN)/mypy tools/demo.py
	@$(BIN)/mypy -p tools.images -p tools.k8s -p tools.release -p tools.scale_sim
	@$(BIN)/lint-imports

format: $(STAMP) ## format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

demo: $(STAMP) ## ask one question through the whole stack, on ports and data of its own
	@$(BIN)/python tools/demo.py

run: $(STAMP) ## keep the stack running in the foreground; Ctrl-C ends all of it
	@mkdir -p .data/run
	@echo "NATS 4222, Milvus Lite 19530, local_inference 8900, chat_handler 8080; ask with: $(BIN)/handlers ask '…'"
	@PATH="$(CURDIR)/$(BIN):$$PATH" RERANKER_URL=$${RERANKER_URL:-http://127.0.0.1:8900} $(BIN)/honcho start || [ $$? -eq 130 ]

run-cluster: $(STAMP) ## the pipeline bridge with an emulated Kubernetes and Kubeflow, in the foreground
	@mkdir -p .data/run && rm -f .data/run/kubeconfig
	@echo "NATS 4222, emulated cluster 8970, pipeline_bridge 8084; start with: $(BIN)/handlers pipeline run document-ingestion --watch"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/honcho -f Procfile.cluster start || [ $$? -eq 130 ]

bench: $(STAMP) ## measure the loop, the start and whole turns against the alternatives; ARGS="--help" for more
	@$(BIN)/python -m benchmarks $(ARGS)

test: $(STAMP) ## all tests but those of images, against real servers started for the run
	@$(BIN)/pytest $(CI_ARGS) -n auto --ignore tests/images --ignore tests/compose/test_stack.py $(ARGS)

include docker/images.mk k8s/k8s.mk tools/release.mk

scale-sim: $(STAMP) ## KEDA's and the autoscaler's formulas on real local workers under bursts; ARGS="--help" for more
	@$(BIN)/python -m tools.scale_sim $(ARGS)

clean: ## remove what the other targets made
	rm -rf $(VENV) .data build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help setup demo run run-cluster test check format bench lock scale-sim clean
