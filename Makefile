# The face of the project. Every job that needs the environment sets it up first; nothing is done twice.
.DEFAULT_GOAL := help
PYTHON ?= python3
RECIPE ?= configs/tiny.yaml
BIN := .venv/bin

.PHONY: help
help: ## list the jobs
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

.PHONY: setup
setup: ## set up .venv and compile llama.cpp (8 minutes the first time; options: SETUP="--torch cpu|cuda")
	@$(PYTHON) pipeline/bootstrap.py $(SETUP)

.PHONY: tools
tools: ## build llama-mtmd-cli and llama-server, which the bench compares with (8 minutes the first time)
	@$(PYTHON) pipeline/bootstrap.py --quiet --tools $(SETUP)

.PHONY: environment
environment:
	@$(PYTHON) pipeline/bootstrap.py --quiet $(SETUP)

.PHONY: parity
parity: environment ## the main job, photos to verdict (RECIPE=configs/photos.yaml PHOTOS=folder SET="train.epochs=1")
	@$(BIN)/parity run $(RECIPE) $(if $(PHOTOS),--set "dataset.path=$(PHOTOS)") $(foreach s,$(SET),--set "$(s)")

.PHONY: test
test: environment ## run the tests (some of them: TESTS="tests/test_letterbox.py -k exif")
	@$(BIN)/pytest $(TESTS)

.PHONY: lint
lint: environment ## check format, style and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

.PHONY: bench
bench: tools ## compare speeds with Pillow, llama-mtmd-cli and llama-server
	@$(BIN)/pipeline export configs/tiny.yaml
	@$(BIN)/python -m bench

.PHONY: lock
lock: environment ## write locks/ again from pyproject.toml (newer versions: UPGRADE=1)
	@PATH="$(CURDIR)/$(BIN):$$PATH" UPGRADE="$(UPGRADE)" $(BIN)/python locks/update.py

.PHONY: clean
clean: ## remove what the tests and checks leave behind
	@rm -rf .pytest_cache .mypy_cache .ruff_cache dist
	@find . -name __pycache__ -not -path './.venv/*' -not -path './.cache/*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## remove the environment and what was compiled, too (runs/ and datasets/ stay)
	@rm -rf .venv .cache
