# make demo   teach the miniature model a cat (installs first) and say where the pictures are
# make memory-table   peak memory and speed of ten recipes at Stable Diffusion 1.5's size; needs a GPU
# make bench  how fast this machine trains and draws, beside plain diffusers code
# make test   linter, type checker, tests (installs first), as CI runs them
# make test-thorough  and the same behaviour once more with every optimizer, launcher and harm: half as long again
#
# PYTHON=python3.12        the interpreter that makes .venv (3.10 or newer)
# TORCH_INDEX=URL          where torch comes from, e.g. https://download.pytorch.org/whl/cpu: no CUDA packages
# PYTEST="-k resume -n0"   what to hand to pytest instead of "-n 2 --dist loadgroup"
# BENCH="only=[plain,ours]" what to hand to make bench

PYTHON ?= python3
PYTEST ?= -n 2 --dist loadgroup
RUN := .venv/bin/python -m
INSTALLED := .venv/installed

.PHONY: demo memory-table bench test test-thorough lint types format wheel clean

demo: $(INSTALLED)
	$(RUN) dreamlab.train experiment=demo

memory-table: $(INSTALLED)
	.venv/bin/python experiments/memory-table/measure.py

bench: $(INSTALLED)
	$(RUN) dreamlab.bench $(BENCH)

# Tests never reach for the network, and two of them at a time get one thread each.
test: export HF_HUB_OFFLINE = 1
test: export WANDB_MODE = offline
test: export OMP_NUM_THREADS = 1
test: lint types
	$(RUN) pytest $(PYTEST)

test-thorough:
	$(MAKE) test PYTEST='$(PYTEST) -m ""'

lint: $(INSTALLED)
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(INSTALLED)
	$(RUN) mypy

format: $(INSTALLED)
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

wheel: $(INSTALLED)
	$(RUN) hatchling build -t wheel

# torch goes first and alone: it is the one package that may come from an index of its own.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into .venv: about two minutes"
	@$(RUN) pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(RUN) pip install -q -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(RUN) pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist
