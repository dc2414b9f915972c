# The face of the project. Every job that needs the environment sets it up first; nothing is done twice.
.DEFAULT_GOAL := help
PYTHON ?= python3
RECIPE ?= configs/tiny.yaml
BIN := .venv/bin

# What users give reaches the programs through the environment, so that no character in it means anything on the way.
export PHOTOS RECIPE SET BUNDLE RUN KEY PUBLIC_KEY MODEL TEXT MMPROJ LLAMA_CPP
OTHER = $(if $(LLAMA_CPP),--llama-cpp "$$LLAMA_CPP")
SET_OPTION = $(if $(SET),--set "$$SET")
SETTINGS = $(if $(PHOTOS),--set "dataset.path='$$(printf %s "$$PHOTOS" | sed "s/'/''/g")'") $(SET_OPTION)

# A job's line in `make help` stands behind its ##; the lines below it that begin with #: are indented there.

##@ Start

.PHONY: help
help: ## list the jobs
	@awk 'BEGIN {FS = ":.*## "; print "make JOB [VARIABLE=value ...]"} \
	  /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  %-16s  %s\n", $$1, $$2} \
	  /^#: / {printf "  %-16s    %s\n", "", substr($$0, 4)}' Makefile

.PHONY: setup
setup: ## set up .venv and compile llama.cpp (8 minutes at first)
#: SETUP="--torch cpu|cuda" LLAMA_CPP=folder
	@$(PYTHON) tools/setup/bootstrap.py $(OTHER) $(SETUP)

.PHONY: environment
environment:
	@$(PYTHON) tools/setup/bootstrap.py --quiet $(SETUP)

.PHONY: parity
parity: environment ## the main job: from photos to the verdict
#: RECIPE=configs/photos.yaml PHOTOS=folder
#: SET="train.epochs=1"
	@$(BIN)/parity run "$$RECIPE" $(SETTINGS)

.PHONY: check
check: environment ## judge any pair of GGUFs, without a recipe
#: MODEL=folder TEXT=text.gguf MMPROJ=mmproj.gguf
#: PHOTOS=folder CHECK="--labels cat,dog"
	@$(BIN)/parity check "$$MODEL" "$$TEXT" "$$MMPROJ" "$$PHOTOS" $(CHECK)

##@ Parity

.PHONY: parity-sweep
parity-sweep: environment ## measure all quantizations, name the smallest that passes
#: RECIPE= PHOTOS= SET= as for parity
	@$(BIN)/parity sweep "$$RECIPE" $(SETTINGS)

.PHONY: parity-ship
parity-ship: environment ## export and judge the pair that the sweep found
#: RECIPE= PHOTOS= SET= as for parity
	@$(BIN)/parity ship "$$RECIPE" $(SETTINGS)

.PHONY: verify
verify: given-bundle $(if $(PUBLIC_KEY),environment) ## check a bundle; needs no set-up
#: BUNDLE=runs/tiny/bundle
#: PUBLIC_KEY=key.pub checks its signature, too
	@$(if $(PUBLIC_KEY),$(BIN)/pipeline verify "$$BUNDLE" --public-key "$$PUBLIC_KEY",$(PYTHON) -m pipeline.export.verify "$$BUNDLE")

.PHONY: sign
sign: $(if $(RUN),,given-bundle) given-key environment ## sign a bundle, or a run's results and verdict
#: BUNDLE=runs/tiny/bundle or RUN=runs/tiny; KEY=key.pem
	@$(if $(RUN),$(BIN)/parity sign "$$RUN" --key "$$KEY",$(BIN)/pipeline sign "$$BUNDLE" --key "$$KEY")

.PHONY: given-bundle
given-bundle:
	@$(if $(BUNDLE),:,echo "error: say which bundle, as in BUNDLE=runs/tiny/bundle" >&2; exit 2)

.PHONY: given-key
given-key:
	@$(if $(KEY),:,echo "error: say which private key, as in KEY=key.pem" >&2; exit 2)

.PHONY: release-gate
release-gate: given-bundle given-app environment ## let an APK or AAB through only with what was judged
#: BUNDLE=runs/tiny/bundle APK=app-release.apk
#: GATE="--package org.example.app" demands more
	@$(BIN)/parity gate "$$(dirname "$$BUNDLE")" --app "$$APK" $(GATE)

.PHONY: given-app
given-app:
	@$(if $(APK),:,echo "error: say which app, as in APK=app-release.apk" >&2; exit 2)

##@ Diagnose

.PHONY: parity-swap
parity-swap: environment ## find which part carries the error, from pixels to runtime
#: RECIPE= PHOTOS= SET= as for parity
	@$(BIN)/parity swap "$$RECIPE" $(SETTINGS)

.PHONY: parity-selftest
parity-selftest: environment ## plant faults; each must be caught at its own stage
#: RECIPE= PHOTOS= SET= as for parity
	@$(BIN)/parity selftest "$$RECIPE" $(SETTINGS)

.PHONY: families
families: environment ## check tiny models of many families
#: FAMILIES="qwen3-vl gemma3"
#: LLAMA_CPP=folder takes another llama.cpp
	@$(if $(LLAMA_CPP),$(PYTHON) tools/setup/bootstrap.py --quiet $(OTHER) $(SETUP) --run) $(BIN)/parity families $(FAMILIES)

.PHONY: tools
tools: ## build llama-mtmd-cli and llama-server (8 minutes)
	@$(PYTHON) tools/setup/bootstrap.py --quiet --tools $(SETUP)

.PHONY: runner
runner: ## build the program that answers on a phone, for this machine
#: RUNNER=aarch64 for a phone (5 minutes)
	@$(PYTHON) tools/setup/bootstrap.py --quiet --runner $(if $(RUNNER),$(RUNNER),native) $(SETUP)

.PHONY: bench
bench: tools ## compare speeds with Pillow, llama-mtmd-cli, llama-server
	@$(BIN)/pipeline export configs/tiny.yaml
	@$(BIN)/python -m bench

##@ Containers

# Images. These need an engine and Python 3.9 or later, and no environment. Options are read from the environment:
# BASE= BUILDER= TORCH_VARIANT= WHEELS= TORCH_INDEX_URL= CA= DEBIAN_MIRROR=, and for runs NETWORK= KEYS= KEYS_FILE= MODEL=
export BASE BUILDER TORCH_VARIANT WHEELS TORCH_INDEX_URL CA DEBIAN_MIRROR BASE_IMAGE NETWORK KEYS KEYS_FILE MODEL
CONTAINERS = @$(PYTHON) -m tools.images

.PHONY: docker-build
docker-build: ## build the images train, parity, artifacts (20 minutes)
#: TORCH_VARIANT=cuda
	$(CONTAINERS) build $(STAGES)

.PHONY: docker-train
docker-train: ## from photos to the bundle, in a container
#: RECIPE= PHOTOS= SET= as for parity
#: NETWORK=bridge KEYS=HF_TOKEN for a model of the hub
	$(CONTAINERS) train $(SET_OPTION)

.PHONY: docker-parity
docker-parity: ## the main job, in a container
#: the same variables
	$(CONTAINERS) parity $(SET_OPTION)

.PHONY: docker-shell
docker-shell: ## a shell in the image, with the same folders and rights
	$(CONTAINERS) shell

.PHONY: docker-repro
docker-repro: environment ## build and train again from nothing, tell what differs
	$(CONTAINERS) repro $(REPRO) $(SET_OPTION)

.PHONY: docker-artifacts
docker-artifacts: ## copy llama.cpp and the SBOMs out of the images, to dist/
	$(CONTAINERS) artifacts

.PHONY: docker-lock
docker-lock: ## write the images' pins again
	$(CONTAINERS) lock

.PHONY: docker-clean
docker-clean: ## remove this project's images and containers
	$(CONTAINERS) clean

.PHONY: test-docker
test-docker: environment ## test the images with the real engine (after docker-build)
	@$(BIN)/pytest tests/docker $(TESTS)

##@ Develop

.PHONY: test
test: environment ## run the tests
#: TESTS="tests/test_docs.py -k make" runs some of them
	@$(BIN)/pytest $(if $(TESTS),$(TESTS),--numprocesses auto -m "not slow and not attack")

.PHONY: test-slow
test-slow: environment ## run the slow tests: jobs, sweeps, swaps, Ray (4 minutes)
	@$(BIN)/pytest -m slow

.PHONY: attack
attack: environment ## try malformed files, kills, full disks, forged results
	@$(BIN)/pytest --numprocesses auto -m attack $(if $(TESTS),$(TESTS),tests/attack)

.PHONY: docs
docs: environment ## build the documentation into site/
	@$(BIN)/python docs/reference/update.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site/index.html"

.PHONY: smoke
smoke: ## run the light tests on the other Pythons (1 minute each)
	@$(PYTHON) -m tools.setup.smoke

.PHONY: lint
lint: environment ## check format, style, types and the floors of imports
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/python -m tools.imports
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows docs/*.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-actions .github/actions/*/action.yml

.PHONY: lock
lock: environment ## write locks/ again from pyproject.toml
#: UPGRADE=1 takes newer versions
	@PATH="$(CURDIR)/$(BIN):$$PATH" UPGRADE="$(UPGRADE)" $(BIN)/python locks/update.py

.PHONY: nightly
nightly: tools test-slow families parity-swap parity-sweep bench docker-repro attack ## run all that takes too long for every change (hours)
#: make -k nightly goes on after a failure

.PHONY: clean
clean: ## remove what the tests and checks leave behind
	@rm -rf .pytest_cache .mypy_cache .ruff_cache dist site
	@find . -name __pycache__ -not -path './.venv/*' -not -path './.cache/*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## also remove .venv and what was compiled, but not runs/
	@rm -rf .venv .cache
