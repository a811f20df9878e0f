# Every target sets up what it needs. `make run` and `make test` are all a newcomer types.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Debian's package `prometheus` has it, with promtool beside it.
PROMETHEUS ?= /usr/bin/prometheus
# For the tests of the web page: the first of the usual names that is there.
CHROMIUM ?= $(shell command -v chromium-headless-shell || command -v chromium || command -v chromium-browser || command -v google-chrome)
# Processes that run the tests. Many tests wait rather than compute, so twice the cores of a small machine.
JOBS ?= 4
PIP_FLAGS := --quiet --disable-pip-version-check --require-hashes

# The tests start hundreds of processes, each of which would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test lint hooks test-comfyui test-llama test-prometheus test-clients test-page test-install soak bench bench-compare comparison docs site requirements clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

$(VENV)/run: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Easel needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1); name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -r requirements.txt
	@printf '#!%s\nimport sys\nsys.path.insert(0, "%s")\nfrom easel.__main__ import main\nmain()\n' \
	  '$(CURDIR)/$(BIN)/python' '$(CURDIR)' > $(BIN)/easel
	@chmod +x $(BIN)/easel
	@touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/run
	$(BIN)/python -m pip install $(PIP_FLAGS) -r requirements-dev.txt
	@touch $@

run: $(VENV)/run  ## Start Easel on http://127.0.0.1:8080
	$(BIN)/gunicorn wsgi:app

lint: $(VENV)/dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Thousands of tests with clocks share a machine that may be busy with other work (docs/decisions/0050).
test: lint  ## Lint, types and all the tests, without a GPU; up to three that fail are run again, alone
	@$(BIN)/pytest -n $(JOBS) --dist worksteal || $(BIN)/python -m tests.second_run $$?

hooks: $(VENV)/dev  ## Lint before each commit
	$(BIN)/pre-commit install

test-comfyui: $(VENV)/dev  ## The contract tests against a real ComfyUI: make test-comfyui URL=http://127.0.0.1:8188
	@test -n "$(URL)" || { echo "set URL: make test-comfyui URL=http://127.0.0.1:8188" >&2; exit 2; }
	EASEL_TEST_COMFYUI=$(URL) $(BIN)/pytest tests/contract $(ARGS)

test-llama: $(VENV)/dev  ## The LLM tests against a real llama-server: make test-llama URL=http://127.0.0.1:8081 [COMFYUI=http://...]
	@test -n "$(URL)" || { echo "set URL: make test-llama URL=http://127.0.0.1:8081" >&2; exit 2; }
	EASEL_TEST_LLAMA_SERVER=$(URL) $(if $(COMFYUI),EASEL_TEST_COMFYUI=$(COMFYUI)) $(BIN)/pytest tests/llm/test_real_llama_server.py tests/server/test_real_switch.py $(ARGS)

test-prometheus: $(VENV)/dev  ## A real Prometheus scrapes a served Easel: make test-prometheus [PROMETHEUS=/usr/bin/prometheus]
	EASEL_TEST_PROMETHEUS=$(PROMETHEUS) $(BIN)/pytest tests/metrics/test_prometheus.py $(ARGS)

test-clients: $(VENV)/dev  ## Real clients from the registries against a served Easel: make test-clients [URL=http://127.0.0.1:8188] [LLAMA=http://127.0.0.1:8081]
	$(BIN)/python -m tests.clients $(if $(URL),--url $(URL)) $(if $(LLAMA),--llama-server $(LLAMA)) $(ARGS)

test-page: $(VENV)/dev  ## The web page in a real Chromium: make test-page [CHROMIUM=/usr/bin/chromium]
	@test -n "$(CHROMIUM)" || { echo "there is no Chromium. Debian: apt-get install chromium-headless-shell; or make test-page CHROMIUM=/path/of/chromium" >&2; exit 2; }
	@command -v npm >/dev/null || { echo "there is no npm, which gets axe-core for the tests of accessibility. Debian: apt-get install npm" >&2; exit 2; }
	EASEL_TEST_PAGE=1 EASEL_TEST_CHROMIUM=$(CHROMIUM) $(BIN)/pytest tests/page $(ARGS)

test-install: $(VENV)/dev  ## Dockerfile and bare Debian in fresh root filesystems, upgrades from older versions; as root, needs mmdebstrap
	@test "$$(id -u)" = 0 || { echo "run it as root: it makes root filesystems and enters them" >&2; exit 2; }
	@command -v mmdebstrap >/dev/null || { echo "there is no mmdebstrap, which makes root filesystems. Debian: apt-get install mmdebstrap" >&2; exit 2; }
	EASEL_TEST_INSTALL=1 $(BIN)/pytest tests/deploy $(ARGS)

soak: $(VENV)/dev  ## 2,000 random interleavings of GPU requests, switches and kills (about six minutes)
	$(BIN)/python -m tests.arbiter --runs 2000 $(ARGS)

bench: $(VENV)/dev  ## Measure latency, throughput, memory and start-up: make bench [URL=http://127.0.0.1:8188]
	$(BIN)/python -m bench $(if $(URL),--url $(URL)) $(ARGS)

bench-compare: $(VENV)/dev  ## Compare the working tree with a commit: make bench-compare REF=main [URL=http://127.0.0.1:8188]
	@test -n "$(REF)" || { echo "set REF: make bench-compare REF=main" >&2; exit 2; }
	$(BIN)/python -m bench.compare $(REF) $(if $(URL),--url $(URL)) $(ARGS)

comparison: $(VENV)/dev  ## Measure Easel beside comfy-api-proxy and gpu-broker's demo, and write docs/comparison.md (needs the network)
	$(BIN)/python -m bench.comparison $(ARGS)

docs: $(VENV)/run  ## Write the generated tables into docs/
	$(BIN)/flask --app app write-docs

site: $(VENV)/dev  ## Build the documentation as a site with a search into site/
	$(BIN)/python docs/build_site.py site

requirements: $(VENV)/run  ## Pin and hash again from pyproject.toml (needs pip-tools on the PATH)
	pip-compile -q --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-find-links --no-header -o requirements.txt pyproject.toml
	pip-compile -q --generate-hashes --strip-extras --extra dev --no-emit-index-url --no-emit-find-links --no-header -c requirements.txt -o requirements-dev.txt pyproject.toml
	pip-compile -q --generate-hashes --strip-extras --extra otel --no-emit-index-url --no-emit-find-links --no-header -c requirements.txt -o requirements-otel.txt pyproject.toml
	pip-compile -q --generate-hashes --strip-extras --extra cluster --no-emit-index-url --no-emit-find-links --no-header -c requirements.txt -o requirements-cluster.txt pyproject.toml

clean:  ## Remove the virtual environment and the caches (not var/)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
