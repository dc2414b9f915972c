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

.PHONY: help
help: ## list the jobs
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' Makefile

.PHONY: setup
setup: ## set up .venv and compile llama.cpp (8 minutes the first time; options: SETUP="--torch cpu|cuda" LLAMA_CPP=folder)
	@$(PYTHON) tools/setup/bootstrap.py $(OTHER) $(SETUP)

.PHONY: tools
tools: ## build llama-mtmd-cli and llama-server, which the bench compares with (8 minutes the first time)
	@$(PYTHON) tools/setup/bootstrap.py --quiet --tools $(SETUP)

.PHONY: environment
environment:
	@$(PYTHON) tools/setup/bootstrap.py --quiet $(SETUP)

.PHONY: parity
parity: environment ## the main job, photos to verdict (RECIPE=configs/photos.yaml PHOTOS=folder SET="train.epochs=1")
	@$(BIN)/parity run "$$RECIPE" $(SETTINGS)

.PHONY: check
check: environment ## any pair, without a recipe (MODEL=folder TEXT=model.gguf MMPROJ=mmproj.gguf PHOTOS=folder; CHECK="--labels cat,dog")
	@$(BIN)/parity check "$$MODEL" "$$TEXT" "$$MMPROJ" "$$PHOTOS" $(CHECK)

.PHONY: parity-selftest
parity-selftest: environment ## plant faults one by one and see each caught at its own stage (RECIPE= PHOTOS= SET=)
	@$(BIN)/parity selftest "$$RECIPE" $(SETTINGS)

.PHONY: parity-swap
parity-swap: environment ## which part carries the error: pixels, vision, language, quantization, runtime (RECIPE= PHOTOS= SET=)
	@$(BIN)/parity swap "$$RECIPE" $(SETTINGS)

.PHONY: parity-sweep
parity-sweep: environment ## every quantization: size, speed, memory, verdict; the smallest that passes (RECIPE= PHOTOS= SET=)
	@$(BIN)/parity sweep "$$RECIPE" $(SETTINGS)

.PHONY: parity-ship
parity-ship: environment ## export and judge the pair that the sweep found (RECIPE= PHOTOS= SET=; after parity-sweep)
	@$(BIN)/parity ship "$$RECIPE" $(SETTINGS)

.PHONY: families
families: environment ## tiny models of many families: is each as docs/families.json expects? (FAMILIES="qwen3-vl gemma3"; another llama.cpp: LLAMA_CPP=folder)
	@$(if $(LLAMA_CPP),$(PYTHON) tools/setup/bootstrap.py --quiet $(OTHER) $(SETUP) --run) $(BIN)/parity families $(FAMILIES)

.PHONY: verify
verify: given-bundle $(if $(PUBLIC_KEY),environment) ## check a bundle, without any set-up (BUNDLE=runs/tiny/bundle; with its signature: PUBLIC_KEY=key.pub)
	@$(if $(PUBLIC_KEY),$(BIN)/pipeline verify "$$BUNDLE" --public-key "$$PUBLIC_KEY",$(PYTHON) -m pipeline.export.verify "$$BUNDLE")

.PHONY: sign
sign: $(if $(RUN),,given-bundle) given-key environment ## sign a bundle, or a run's results and verdict (BUNDLE=runs/tiny/bundle or RUN=runs/tiny; KEY=key.pem)
	@$(if $(RUN),$(BIN)/parity sign "$$RUN" --key "$$KEY",$(BIN)/pipeline sign "$$BUNDLE" --key "$$KEY")

.PHONY: given-bundle
given-bundle:
	@$(if $(BUNDLE),:,echo "error: say which bundle, as in BUNDLE=runs/tiny/bundle" >&2; exit 2)

.PHONY: given-key
given-key:
	@$(if $(KEY),:,echo "error: say which private key, as in KEY=key.pem" >&2; exit 2)

.PHONY: test
test: environment ## run the tests (some of them: TESTS="tests/test_letterbox.py -k exif")
	@$(BIN)/pytest $(if $(TESTS),$(TESTS),--numprocesses auto -m "not slow and not attack")

.PHONY: test-slow
test-slow: environment ## run the tests that take longer: whole jobs, sweeps, swaps, Ray (4 minutes)
	@$(BIN)/pytest -m slow

.PHONY: attack
attack: environment ## try malformed files, kills, full disks and forged results; ends with a table of what came of them
	@$(BIN)/pytest --numprocesses auto -m attack $(if $(TESTS),$(TESTS),tests/attack)

.PHONY: smoke
smoke: ## run the tests that need no model on the other Pythons of the machine (1 minute each)
	@$(PYTHON) -m tools.setup.smoke

.PHONY: lint
lint: environment ## check format, style, types and the floors that imports keep to
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/python -m tools.imports

# Images. These need an engine and Python 3.9 or later, and no environment. Options are read from the environment:
# BASE= BUILDER= TORCH_VARIANT= WHEELS= TORCH_INDEX_URL= CA= DEBIAN_MIRROR=, and for runs NETWORK= KEYS= KEYS_FILE= MODEL=
export BASE BUILDER TORCH_VARIANT WHEELS TORCH_INDEX_URL CA DEBIAN_MIRROR BASE_IMAGE NETWORK KEYS KEYS_FILE MODEL
CONTAINERS = @$(PYTHON) -m tools.images

.PHONY: docker-build
docker-build: ## build the images train, parity and artifacts (20 minutes on 2 cores the first time; TORCH_VARIANT=cuda)
	$(CONTAINERS) build $(STAGES)

.PHONY: docker-train
docker-train: ## photos to bundle in a container (RECIPE= PHOTOS= SET= as for parity; NETWORK=bridge KEYS=HF_TOKEN)
	$(CONTAINERS) train $(SET_OPTION)

.PHONY: docker-parity
docker-parity: ## the main job, photos to verdict, in a container (same options)
	$(CONTAINERS) parity $(SET_OPTION)

.PHONY: docker-shell
docker-shell: ## a shell in the image, with the same folders and as few rights
	$(CONTAINERS) shell

.PHONY: docker-repro
docker-repro: environment ## build twice from nothing and train three times; dist/repro.json says what differed
	$(CONTAINERS) repro $(REPRO) $(SET_OPTION)

.PHONY: docker-artifacts
docker-artifacts: ## copy llama.cpp for x86-64 and for phones, and each image's SBOM, to dist/
	$(CONTAINERS) artifacts

.PHONY: docker-lock
docker-lock: ## write docker/versions.env, docker/debian/*.lock and the Dockerfile's pins again
	$(CONTAINERS) lock

.PHONY: docker-clean
docker-clean: ## remove this project's images and containers
	$(CONTAINERS) clean

.PHONY: test-docker
test-docker: environment ## test the images with the real engine (after docker-build)
	@$(BIN)/pytest tests/docker $(TESTS)

.PHONY: docs
docs: environment ## build the documentation into site/
	@$(BIN)/python docs/reference/update.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site/index.html"

.PHONY: bench
bench: tools ## compare speeds with Pillow, llama-mtmd-cli and llama-server
	@$(BIN)/pipeline export configs/tiny.yaml
	@$(BIN)/python -m bench

.PHONY: nightly
nightly: test-slow families parity-swap parity-sweep bench docker-repro attack ## what takes too long for every change, in turn (hours; `make -k` goes on after a failure)

.PHONY: lock
lock: environment ## write locks/ again from pyproject.toml (newer versions: UPGRADE=1)
	@PATH="$(CURDIR)/$(BIN):$$PATH" UPGRADE="$(UPGRADE)" $(BIN)/python locks/update.py

.PHONY: clean
clean: ## remove what the tests and checks leave behind
	@rm -rf .pytest_cache .mypy_cache .ruff_cache dist site
	@find . -name __pycache__ -not -path './.venv/*' -not -path './.cache/*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## remove the environment and what was compiled, too (runs/ and datasets/ stay)
	@rm -rf .venv .cache
