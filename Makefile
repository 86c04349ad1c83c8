# Every target sets up what it needs in .venv by itself, once; the second call starts at once.
#   make test PYTHON=python3.12               another Python for a new .venv
#   make test PIP_ARGS="--no-index -f DIR"    more arguments for every pip install (a mirror, a CPU build of torch)
#   make test PYTEST_ARGS="-k dream -x"       other arguments for pytest

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test results lint types versions docs graphics luanti browser

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
PIP_ARGS ?=
OLDEST ?= python3.10
NEWEST ?= python3.13
PYTEST_ARGS ?= -n auto --dist loadfile
DATA ?=
BLOCKS ?=

VENV := .venv
BIN := $(VENV)/bin
KERNELS := $(VENV)/kernels
SCORES := docs/scores/memory_maze
SCRIPTS = $(wildcard agents/*.py examples/*.py experiments/agents_by_name.py experiments/agent_speed.py experiments/balls_recalled.py experiments/behavior_cloning.py experiments/conservative_rollouts.py experiments/check_*.py experiments/collect_with_policy.py experiments/crafting.py experiments/dagger.py experiments/digging.py experiments/live.py experiments/luanti_*.py experiments/maze_layout.py experiments/maze_motion.py experiments/maze_reader.py experiments/more_tests.py experiments/mpc.py experiments/planner.py experiments/ppo_real.py experiments/quantize.py experiments/rewards_ahead.py experiments/trials.py experiments/web_rate.py experiments/benchmark/*.py)
# EGL and Mesa's software renderer, for MuJoCo
GRAPHICS := libegl1 libgl1-mesa-dri
# The real block world, a display for it, and what its two C libraries are compiled with
LUANTI := minetest minetest-data xvfb libgl1-mesa-dri gcc libc6-dev libx11-dev libgl-dev
# For the page of the game
BROWSER := chromium
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo yes)
APT_INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends

help: ## this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(BIN)/.ready-demo ## dream a maze on the CPU and save what was seen
	$(BIN)/python examples/demo.py

test: $(BIN)/.ready-dev $(KERNELS)/.ready graphics luanti browser ## the whole test suite
	$(BIN)/python -m pytest $(PYTEST_ARGS)

results: $(BIN)/.ready-dev ## the README's numbers and pictures, in hours: make results DATA=<mazes> BLIND=<mazes> BLOCKS=<block world>
	@for folder in "$(DATA)" "$(BLIND)" "$(BLOCKS)"; do [ -d "$$folder/test" ] || { echo "results needs real episodes: make results DATA=<mazes> \
	BLIND=<mazes of players that do not look> BLOCKS=<block world>, folders with train, val and test" >&2; exit 1; }; done
	$(BIN)/python -m experiments.more_tests --data $(DATA)/test --clips 1 --retrieval 100 400 --out $(SCORES).json --figures docs/media
	$(BIN)/lssvwm-gym evaluate --data $(DATA)/test --clips 2 --steps 4 --tests next_frame open_loop --out $(SCORES)_balanced.json
	for k in 4 8; do $(BIN)/lssvwm-gym evaluate --data $(DATA)/test --clips 1 --steps $$k --tests reasoning --memories own --out $(SCORES)_reasoning_$$k.json; done
	for k in 1 4 8; do \
	$(BIN)/lssvwm-gym evaluate --data $(BLIND)/test --other-data $(BLIND)/train --steps $$k --tests imagination stability \
	--out docs/scores/imagination_test_$$k.json $$([ $$k = 4 ] && echo --figures docs/media); \
	$(BIN)/lssvwm-gym evaluate --data $(DATA)/test --steps $$k --tests known_places --out docs/scores/known_places_test_$$k.json; done
	$(BIN)/python -m docs._scripts.films --data $(DATA)/test
	$(BIN)/python -m experiments.benchmark --steps 100 --ages 10 50 1000 10000 --rounds 30 --threads 1 --out docs/scores/bench_steps.json
	$(BIN)/python -m experiments.benchmark --parts simulators --steps 200 --out docs/scores/bench_simulators.json
	$(BIN)/python -m experiments.benchmark --parts speed --steps 200 --dtype bfloat16 --backend compiled --threads 1 --out docs/scores/bench_compiled.json
	$(BIN)/python -m experiments.benchmark --parts simulators --steps 200 --dtype bfloat16 --backend compiled --out docs/scores/bench_simulators_compiled.json
	$(BIN)/python -m experiments.benchmark --parts speed --steps 100 --backend compiled --threads 1 --out docs/scores/bench_compiled_float32.json
	$(BIN)/python -m experiments.benchmark --parts speed --steps 100 --dtype bfloat16 --threads 1 --out docs/scores/bench_bfloat16.json
	$(BIN)/python -m experiments.benchmark --parts cache --cache-ages 10 100 1000 3000 10000 --out docs/scores/bench_cache.json --plots docs/media
	$(BIN)/python -m experiments.benchmark --parts peak scan --out docs/scores/bench_arithmetic.json
	$(BIN)/python -m experiments.benchmark --parts training --clips 100 200 400 1000 --repeats 3 --out docs/scores/bench_training.json --plots docs/media
	$(BIN)/python experiments/compare_variants.py --data $(DATA)
	$(BIN)/python experiments/compare_variants.py --short --data $(DATA)
	$(BIN)/python experiments/compare_variants.py --long --data $(DATA)
	$(BIN)/python -m experiments.more_tests --world minecraft --data $(BLOCKS)/test --out docs/scores/minecraft.json --figures docs/media/minecraft
	$(BIN)/python experiments/compare_variants.py --world minecraft --data $(BLOCKS) --variants ours sliding-window
	$(BIN)/python docs/_scripts/update_numbers.py

lint: $(BIN)/.ready-dev ## style: ruff format and ruff check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(BIN)/.ready-dev ## types: mypy over the package and the scripts
	$(BIN)/mypy lssvwm_gym $(SCRIPTS)

docs: $(BIN)/.ready-dev ## the site of the documentation, into site/
	$(BIN)/python docs/_scripts/live.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

versions: $(BIN)/.ready-dev ## a part of the tests at the lowest and the newest releases: make versions OLDEST=python3.10 NEWEST=python3.13
	$(BIN)/python experiments/versions.py lowest --python $(OLDEST) --pip-args="$(PIP_ARGS)"
	$(BIN)/python experiments/versions.py newest --python $(NEWEST) --pip-args="$(PIP_ARGS)"

# What each target installs. labmaze, which the simulator needs, has no wheel for Python 3.13 yet.
$(BIN)/.ready-demo: EXTRAS = play
$(BIN)/.ready-dev: EXTRAS = dev$(shell $(BIN)/python -c 'import sys; print(",memory-maze" if sys.version_info < (3, 13) else "")')
$(BIN)/.ready-demo $(BIN)/.ready-dev: pyproject.toml constraints.txt | $(BIN)/.pip
	@echo "Installing lssvwm_gym[$(EXTRAS)] into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

$(BIN)/.pip: | constraints.txt
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		[ -n "$(AS_ROOT)" ] || { echo "$(PYTHON) cannot make a virtual environment: install python3 and python3-venv" >&2; exit 1; }; \
		apt-get update -qq && $(APT_INSTALL) python3 python3-venv; \
	fi
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --upgrade pip
	@touch $@

# What CUDA devices can compute scans with, for tests of it in Triton's interpreter. In a folder of its own, so that nothing else
# sees Triton, and without dependencies, so that no other torch comes with it. mamba-ssm is built without its compiled extension.
$(KERNELS)/.ready: constraints.txt | $(BIN)/.ready-dev
	@echo "Installing mamba-ssm's kernels into $(KERNELS), for their tests ..."
	@rm -rf $(KERNELS) && mkdir -p $(KERNELS)
	@if { $(call into_kernels,wheel triton) && export PYTHONPATH=$(KERNELS) MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE && \
		$(call into_kernels,--no-build-isolation mamba-ssm); } >$(KERNELS)/install.log 2>&1; \
	then touch $@; else echo "could not install them, see $(KERNELS)/install.log: their tests will be skipped"; fi
into_kernels = $(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-deps --target $(KERNELS) $(1)

graphics:
	$(call apt_install,$(GRAPHICS),software rendering)

luanti:
	$(call apt_install,$(LUANTI),the real block world)

browser:
	$(call apt_install,$(BROWSER),the page of the game)

# $(1) packages, $(2) what for; nothing happens where they are there or there is no apt
define apt_install
	@if command -v dpkg >/dev/null && ! dpkg -s $(1) >/dev/null 2>&1; then \
		echo "Installing $(1) for $(2) ..."; \
		{ [ -n "$(AS_ROOT)" ] && apt-get update -qq && $(APT_INSTALL) $(1) >/dev/null; } \
			|| echo "could not install $(1) as this user: tests that need them will be skipped"; \
	fi
endef
