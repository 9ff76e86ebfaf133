# Vitrea: everything here needs Python 3.11 with pip and venv, and nothing else installed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install demo test test-cluster lint docs wheel clean

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
# Small products on many BLAS threads are slow; the program sets this itself, pytest does not.
export OPENBLAS_NUM_THREADS = 1
# Only Open MPI reads these: it refuses root, and more ranks than cores, unless told.
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
export PRTE_MCA_rmaps_default_mapping_policy = :oversubscribe
export OMPI_MCA_rmaps_base_oversubscribe = 1

DEMO       = demo
DEMO_STACK = --n 1500 --views 8 --box 64 --pixel-size 4 --snr 0.1 --seed 1

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv and install Vitrea with an MPI runtime into it

demo: $(STAMP)  ## simulate a small stack, classify it on 2 ranks, compare with the truth
	@rm -rf $(DEMO)
	@echo "== 1/3 simulate particles of a known specimen"
	@$(BIN)/vitrea simulate particles --out $(DEMO)/simulated $(DEMO_STACK)
	@echo; echo "== 2/3 classify them on two ranks"
	@printf 'job: classify2d\ninput: %s\noutput: %s\nn_classes: 16\nparticle_diameter: 200\n' \
	    $(DEMO)/simulated/particles.star $(DEMO)/run > $(DEMO)/job.yaml
	@$(BIN)/mpiexec -n 2 $(BIN)/vitrea run $(DEMO)/job.yaml
	@echo; echo "== 3/3 compare with the truth"
	@$(BIN)/vitrea compare $(DEMO)/simulated/truth.star $(DEMO)/run/run_data.star
	@echo; echo "16 classes for 8 views: each view fills two classes, so purity should be near 1 and ARI near 0.64"
	@echo; echo "class averages  $(DEMO)/run/classes.png"
	@echo "particles       $(DEMO)/run/run_data.star"
	@echo "classes         $(DEMO)/run/run_model.star, $(DEMO)/run/run_classes.mrcs"

test: $(STAMP)  ## the whole test suite: everything on 1 rank, the MPI tests on 2 and 4
	@echo "== 1 rank";  $(BIN)/python -m pytest -q --with-mpi -n 2 --dist loadfile
	@echo "== 2 ranks"; $(BIN)/mpiexec -n 2 $(BIN)/python -m pytest -q --only-mpi -m mpi
	@echo "== 4 ranks"; $(BIN)/mpiexec -n 4 $(BIN)/python -m pytest -q --only-mpi -m mpi

test-cluster: $(STAMP)  ## the tests with a real Slurm, started here; as root, with slurm-wlm and munge installed
	@VITREA_TEST_CLUSTER=1 $(BIN)/python -m pytest -q tests/cluster

lint: $(STAMP)  ## check the style with ruff
	@$(BIN)/ruff check .

docs: $(STAMP)  ## write docs/job-keys.md from engine/options.py
	@$(BIN)/python -c "from vitrea.jobs.jobfile import keys_document; print(keys_document(), end='')" > docs/job-keys.md

wheel: $(STAMP)  ## build a wheel in dist/
	@$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## remove what these targets made
	rm -rf $(VENV) $(DEMO) dist build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Once; again when the dependencies or the packages change.
$(STAMP): pyproject.toml setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); Python 3.11 or later is needed; try 'make PYTHON=python3.11'" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	    || { rm -rf $(VENV); echo "The virtual environment could not be made; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing Vitrea and an MPI runtime into $(VENV) (once; a minute or two)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -e ".[mpi,test]"
	@touch $@
