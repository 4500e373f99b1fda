# Orchard. `make` alone lists the targets. Each target does its own set-up. Required: Python 3.11 with venv, a PyPI index.
SHELL := /bin/bash
PYTHON ?= python3.11
DATA ?=
BUCKET ?=
STACK ?=
DATASETS ?=
PARAMETERS ?=
CONFIRM ?=
REGION ?= eu-west-1
AWS_PORT ?= 5000
WEB_PORT ?= 8080

UV := .uv/bin/uv
UV_VERSION := 0.13.9
export UV_PYTHON := $(PYTHON)
export UV_PYTHON_DOWNLOADS := never
# uv does not compile the packages that it installs. Without cached bytecode, each program compiles them when it starts.
unexport PYTHONDONTWRITEBYTECODE
RUN := .venv/bin/python
# The nodes' wheels must fit EMR 7: Amazon Linux 2023 with glibc 2.34, on Intel and on Graviton processors.
ARCHITECTURES := x86_64 aarch64
TAGS := manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014
PLATFORMS = $(foreach tag,$(TAGS),--platform $(tag)_$(1))
# The name contains the architectures, so that wheels that were downloaded for others are not taken for complete.
WHEELS := build/wheels/.complete-$(subst $(eval) ,-,$(ARCHITECTURES))
CODE := benchmarks dags demo docker infra local_aws model plugins sandbox spark tests
SHELL_SCRIPTS := .ci/run bootstrap/install.sh docker/entrypoint.sh tests/docker/stand_ins/postgres.sh

# A variable as one word of the shell. `value` keeps a $, which make would take for a reference.
quoted = '$(subst ','\'',$(value $(1)))'
# A variable as words of the shell, which are separated by spaces.
quoted_words = $(foreach item,$(value $(1)),'$(subst ','\'',$(item))')

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: release-parts ## Run the whole pipeline once on this machine [DATA=folder of class folders]
	@$(RUN) -m demo $(if $(value DATA),--data $(call quoted,DATA))

.PHONY: demo-nights
demo-nights: release-parts ## Run six nights of one dataset on this machine [DATA=folder of class folders]
	@$(RUN) -m demo.nights $(if $(value DATA),--data $(call quoted,DATA))

.PHONY: up
up: release-parts ## Start the local AWS and the Airflow UI [DATA=folder AWS_PORT=5000 WEB_PORT=8080]
	@$(RUN) -m sandbox.up $(if $(value DATA),--data $(call quoted,DATA)) --aws-port $(AWS_PORT) --web-port $(WEB_PORT)

.PHONY: down
down: setup ## Stop what `make up` started
	@$(RUN) -m sandbox.up --down

.PHONY: test
test: release-parts ## Run all tests except the slow ones (about 16 minutes on two cores)
	@$(RUN) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not slow"

.PHONY: test-slow
test-slow: release-parts ## Run the slow tests
	@$(RUN) -m pytest -m "slow and not docker"

.PHONY: test-faults
test-faults: release-parts ## Inject faults into a complete Orchard and print the outcomes (about 45 minutes)
	@$(RUN) -m pytest --numprocesses 2 --dist loadfile tests/faults

.PHONY: test-like-emr
test-like-emr: export LOCAL_AWS_OPTIONS := --like-emr
test-like-emr: release-parts ## Run the end-to-end tests on a local AWS that is as slow as EMR (about an hour)
	@$(RUN) -m pytest --numprocesses 4 --dist loadfile -m "" tests/e2e

.PHONY: test-ui
test-ui: release-parts ## Test the pages in a real browser; pictures of them go to build/ui (needs Chromium)
	@$(RUN) -m pytest -m "" tests/ui

.PHONY: test-docker
test-docker: release-parts ## Build and run the containers of docker-compose.yaml (needs a Docker engine, or dockerd and root)
	@$(RUN) -m pytest -m docker --capture=no tests/docker

.PHONY: notebook
notebook: setup ## Open notebooks/explore.ipynb in JupyterLab; the environment says which deployment it reads
	@$(UV) sync --frozen --quiet --inexact --group notebook
	@.venv/bin/jupyter lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=notebooks --LabApp.default_url=/lab/tree/explore.ipynb

.PHONY: bench
bench: release-parts ## Compare the steps with their predecessor and bare loops (about 45 minutes) [DATA=folder or zip]
	@PYTHONPATH=plugins:spark $(RUN) -m benchmarks.run $(if $(value DATA),--data $(call quoted,DATA))

.PHONY: lint
lint: setup ## Check style, types and generated files
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy $(CODE)
	@.venv/bin/shellcheck $(SHELL_SCRIPTS)
	@$(UV) lock --check
	@diff <($(EXPORT)) bootstrap/requirements.txt || { echo "bootstrap/requirements.txt is stale: make requirements"; exit 1; }
	@diff <($(FOR_AIRFLOW)) infra/airflow_requirements.txt \
		|| { echo "infra/airflow_requirements.txt is stale: make requirements"; exit 1; }

.PHONY: setup
setup: .venv/.synced ## Install the packages of uv.lock into .venv

.PHONY: release-parts
release-parts: setup $(WHEELS) build/model/.complete ## Download the nodes' wheels and export the model
	@chmod a+rX build && chmod -R a+rX build/wheels build/model # containers mount them, and run as another user

.PHONY: release
release: release-parts ## Upload a release to S3 and print the settings for it [BUCKET=name]
	@test -n $(call quoted,BUCKET) || { echo "BUCKET is not set: make release BUCKET=name" >&2; exit 2; }
	@$(RUN) -m infra.release --bucket $(call quoted,BUCKET)

.PHONY: release-list
release-list: setup ## List the releases on S3, the runs that used them, and the unused ones [BUCKET=name]
	@test -n $(call quoted,BUCKET) || { echo "BUCKET is not set: make release-list BUCKET=name" >&2; exit 2; }
	@$(RUN) -m infra.release_list --bucket $(call quoted,BUCKET)

DEPLOY_LISTS = --datasets $(call quoted_words,DATASETS) --parameters $(call quoted_words,PARAMETERS)

.PHONY: deploy
deploy: setup ## Create or update the AWS resources and print the settings [STACK=name DATASETS= PARAMETERS= REGION=]
	@test -n $(call quoted,STACK) || { echo "STACK is not set: make deploy STACK=name" >&2; exit 2; }
	@$(RUN) -m infra.deploy --stack $(call quoted,STACK) --region $(call quoted,REGION) $(DEPLOY_LISTS)

.PHONY: destroy
destroy: setup ## List the AWS resources of a stack, and delete them if confirmed [STACK=name CONFIRM=name REGION=]
	@test -n $(call quoted,STACK) || { echo "STACK is not set: make destroy STACK=name" >&2; exit 2; }
	@$(RUN) -m infra.destroy --stack $(call quoted,STACK) --region $(call quoted,REGION) --confirm $(call quoted,CONFIRM)

.PHONY: prices
prices: setup ## Read the prices of the instance types from AWS [REGION=eu-west-1]
	@$(RUN) -m infra.prices --region $(call quoted,REGION)

.PHONY: requirements
requirements: setup ## Export bootstrap/requirements.txt and infra/airflow_requirements.txt from uv.lock
	@$(EXPORT) > bootstrap/requirements.txt
	@$(FOR_AIRFLOW) > infra/airflow_requirements.txt

.PHONY: wheel
wheel: setup ## Build the wheels orchard-airflow and orchard-local-aws into build/wheel
	@$(RUN) -m infra.wheels

.PHONY: clean
clean: ## Remove build/
	rm -rf build

EXPORT = $(UV) export --quiet --frozen --only-group node --no-emit-project --no-header
FOR_AIRFLOW = $(RUN) -m infra.airflow_requirements

$(UV):
	@command -v $(PYTHON) > /dev/null || { echo "Python 3.11 is required. If it has another name, run: make PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.synced: pyproject.toml uv.lock | $(UV)
	@echo "installing the packages of uv.lock into .venv" >&2
	@$(UV) sync --frozen --quiet
	@touch $@

# pip selects one wheel per package. A wheel of pure Python is the same file for all architectures.
DOWNLOAD = $(RUN) -m pip download -qq --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
	--python-version 3.11 $(call PLATFORMS,$(1)) --requirement bootstrap/requirements.txt --dest build/wheels

$(WHEELS): bootstrap/requirements.txt .venv/.synced
	@echo "downloading the nodes' wheels for $(ARCHITECTURES) into build/wheels" >&2
	@rm -rf build/wheels && mkdir -p build/wheels
	@$(foreach architecture,$(ARCHITECTURES),$(call DOWNLOAD,$(architecture)) &&) touch $@

build/model/.complete: model/export.py uv.lock | .venv/.synced
	@echo "exporting the model into build/model (about half a minute); its log is build/export_model.log" >&2
	@rm -rf build/model && mkdir -p build/model
	@TF_CPP_MIN_LOG_LEVEL=3 $(RUN) -m model.export --output-dir build/model > build/export_model.log 2>&1 \
		|| { tail -n 20 build/export_model.log; exit 1; }
	@grep model.export: build/export_model.log >&2
	@touch $@
