# `make` alone lists the targets. What needs .venv makes it first, from the files of this clone.

SHELL   := bash
PYTHON  ?= python3
PROFILE ?= quick
ARGS    ?=

# One store for the command and the notebooks, which run in notebooks/.
ROBUSTLIB_STORE ?= $(CURDIR)/runs/store
export ROBUSTLIB_STORE

# A container may forbid it. Then each of the many processes of a study compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE

READY := .venv/.ready
RUN   := .venv/bin/python -m

# Notebooks of this clone, at the depth of notebooks/: not the executed copies under runs/.
NOTEBOOKS := find . -maxdepth 2 -name '*.ipynb' -exec

# Each target is one job that uses every core itself, so `make -j` runs them one by one too.
.NOTPARALLEL:
.PHONY: help env study test test-browser gpu lint docs format figures gallery lab lock clean

help:
	@echo 'make study    run a study: PROFILE=quick (minutes, needs no data), cpu, paper'
	@echo 'make lab      open the notebooks in JupyterLab'
	@echo 'make figures  draw figures/ and their tables again, from the rows beside them'
	@echo 'make gallery  write docs/gallery/ again, from the notebooks of PROFILE=cpu make study'
	@echo 'make test     lint, then every test and every notebook; ARGS go to pytest'
	@echo 'make test-browser  notebooks in JupyterLab, used with mouse and keys: needs chromium'
	@echo 'make gpu      measure a GPU in 9 minutes: benchmarks/gpu.csv, and the tests that need one'
	@echo 'make lint     ruff, mypy, and notebooks without outputs'
	@echo 'make docs     the pages of docs/ and the API reference, as HTML in docs/_build/html'
	@echo 'make format   fix what `make lint` finds, where that can be done without you'
	@echo 'make env      make .venv, or bring it up to pyproject.toml and constraints.txt'
	@echo 'make lock     pin in constraints.txt what .venv has'
	@echo 'make clean    remove .venv and caches; results under runs/ stay'
	@echo 'Datasets are read from ROBUSTLIB_DATA=/folder/of/packs. PYTHON=python3.12 picks a Python.'

env: $(READY)

# The stamp goes first and comes back last. A .venv without it was interrupted: it is made anew,
# since pip takes a half-unpacked package for an installed one.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "robustlib needs Python 3.11 or newer, not " + sys.version.split()[0] + \
	    ": try make PYTHON=python3.12")'
	@test -f $@ || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	@rm -f $@
	@echo 'Installing robustlib into .venv: about 6 GB and a few minutes the first time.'
	@quiet=$$(test -t 1 || echo -q); \
	    $(RUN) pip install $$quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

study: env
	@.venv/bin/robustlib study --profile "$(PROFILE)"

lint: env
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(NOTEBOOKS) $(RUN) nbstripout --keep-id --verify {} +

# One thread a process: two workers share two cores, and results do not depend on the machine.
# The notebooks find their store in the environment; the tests bring their own (tests/conftest.py).
test: lint
	store=$$(mktemp -d) && trap 'rm -rf "$$store"' EXIT && \
	    OMP_NUM_THREADS=1 ROBUSTLIB_STORE="$$store" $(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore=tests/browser \
	    $(ARGS)

# What was seen is in build/browser: contact_sheet.png shows all of it.
test-browser: env
	$(RUN) pip install -q --disable-pip-version-check -c constraints.txt -e '.[test,browser]'
	$(RUN) pytest tests/browser $(ARGS)

gpu: env
	.venv/bin/python benchmarks/gpu.py --out benchmarks/gpu.csv $(ARGS)

docs: env
	$(RUN) sphinx -q -W --keep-going -b html docs docs/_build/html

format: env
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(NOTEBOOKS) $(RUN) nbstripout --keep-id {} +

figures: env
	.venv/bin/robustlib figures
	.venv/bin/robustlib figures --rows figures/control
	.venv/bin/robustlib figures --rows figures/larger

# Its pages are committed, the executed notebooks are not.
gallery: env
	.venv/bin/python docs/gallery.py runs/cpu/notebooks

# The clone is the root, or links from notebooks to figures/ would lead nowhere.
lab: env
	$(RUN) jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

lock: env
	.venv/bin/python .ci/constraints.py > constraints.txt

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
