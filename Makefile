# Everything runs from a bare machine with Python 3.11 or newer: the environments are created on first use and
# rebuilt when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV := .venv
VENV36 := .venv-triton36
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
STAMP36 := $(VENV36)/.stamp

# The lanes run on both. triton is installed in a step of its own because torch's public build pins another release.
TRITON_LATEST := 3.9.0
TRITON_OLDEST := 3.6.0

# Compilers for the CUDA sources, in a folder of their own: torch pins another release of the first. CUDA 13 has dropped
# the GPUs before sm_75.
NVRTC := 'nvidia-cuda-nvrtc==13.5.37' 'nvidia-cuda-nvrtc-cu12==12.9.86'

# What a machine with a GPU may come with; torch from the public index is built for CUDA. And Python with NumPy alone.
# Neither can be had everywhere: their lanes say "not run" then, and so they are no lanes of `make test`.
VENV_IMAGE := .venv-gpu-image
IMAGE := 'torch==2.11.0' 'triton==3.6.0' 'cupy-cuda13x==14.2.0' 'numpy==2.5.*' pytest pytest-xdist hypothesis matplotlib
IMAGE_PYTHON ?= python3.12
VENV_NUMPY := .venv-numpy
NUMPY_PYTHON ?= python3.13
MORE_LANES := stack-gpu-image numpy-alone

# A subset of the lanes: make test LANES="lint unit"
LANES ?= lint unit interpret-triton36 interpret codegen codegen-triton36 docs cuda-on-cpu executor frontend frontend-triton36 packaging models distributed gpu
DEMO ?= build/demo

# make gpu-report BUDGET=600 STAGES="parity benchmark" ARGS=--resume; with the Python that has torch for the GPU
ALL ?=
BUDGET ?= 530
STAGES ?=
ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

lanes_need = $(if $(filter-out $(MORE_LANES),$(LANES)),$(STAMP)) \
  $(if $(filter %-triton36,$(LANES)),$(STAMP36)) \
  $(if $(filter stack-gpu-image,$(LANES)),$(VENV_IMAGE)/.stamp) $(if $(filter numpy-alone,$(LANES)),$(VENV_NUMPY)/.stamp)

.DEFAULT_GOAL := help
.PHONY: help demo test test-full lint docs format codegen gpu-report report model-gap card pack clean python

help:
	@echo "make demo       set up $(VENV) and run the demonstration; the picture goes to $(DEMO)"
	@echo "make test       set up both environments and run every lane, of long lists a part, on either Triton another one"
	@echo "make test-full  the same lanes with GPUCONV_TEST_FULL=1, and those of other stacks: $(MORE_LANES)"
	@echo "                (of the codegen tables one architecture of each launch, on one Triton: make codegen ALL=--all is everything)"
	@echo "                (long lists are interpreted or compiled in part on either Triton: GPUCONV_TEST_BOTH=1 is everything)"
	@echo "make lint       ruff, import contracts, mypy"
	@echo "make docs       build the documentation, run every block of it and every example; the pages go to build/docs"
	@echo "make format     apply ruff's fixes and formatting"
	@echo "make codegen    recompile what changed for the tables and pages of tests/codegen (ALL=--all: everything)"
	@echo "make gpu-report measure everything on this host's GPU, with $(PYTHON), which needs torch, triton and numpy"
	@echo "make report     rebuild the README's tables from bench/results"
	@echo "make model-gap  rewrite docs/model-gap.md: modelled time over roofline, by family of layers, without a GPU"
	@echo "make card       prepare build/card for a rented GPU: compiled kernels, and the two commands with their plan"
	@echo "make pack       compile the kernels of bench/workloads for PACK_ARCHS and build the distribution gpuconv-pack"
	@echo "make clean      remove environments, build outputs and caches"
	@echo 'Some lanes only: make test LANES="lint unit".  Another interpreter: make test PYTHON=python3.12'

demo: $(STAMP)
	$(BIN)/gpuconv demo --output $(DEMO)

# Both environments at once: one installs while the other downloads.
test: python
	@$(MAKE) --no-print-directory -j2 $(lanes_need)
	@$(PYTHON) scripts/lanes.py $(LANES)

test-full: export GPUCONV_TEST_FULL := 1
test-full: LANES += $(MORE_LANES)
test-full: test

lint: $(STAMP)
	@$(PYTHON) scripts/lanes.py lint

docs: $(STAMP)
	@$(PYTHON) scripts/lanes.py docs

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Kernels whose sources and launches did not change keep their rows; table.py goes on with the other Triton by itself.
codegen: export PYTHONPATH := $(CURDIR)
codegen: $(STAMP) $(STAMP36)
	$(BIN)/python tests/codegen/cu_table.py $(ALL)
	$(BIN)/python -W ignore tests/codegen/table.py $(ALL)
	for python in $(BIN)/python $(VENV36)/bin/python; do for table in pool_table pool_adaptive_table columns_table narrow_table banded_table; do \
	  $$python -W ignore tests/codegen/$$table.py $(ALL) || exit 1; \
	done; done

gpu-report:
	$(PYTHON) bench/gpu_report.py --budget $(BUDGET) $(if $(STAGES),--stage $(STAGES)) $(ARGS)

report: python
	$(PYTHON) bench/readme.py

model-gap: $(STAMP)
	$(BIN)/python bench/model_gap.py

PACK_ARCHS ?= sm_80 sm_90 sm_100
PACK_JOBS ?= 2
card: $(STAMP)
	$(BIN)/python bench/card.py --jobs $(PACK_JOBS)

pack: $(STAMP)
	$(BIN)/gpuconv pack $(PACK_ARCHS:%=--arch %) --all-workloads --jobs $(PACK_JOBS) --out packs/gpuconv_pack_default
	$(BIN)/gpuconv pack --verify packs/gpuconv_pack_default
	$(BIN)/python -m build --wheel --outdir dist packs
	@du -sh packs/gpuconv_pack_default dist/gpuconv_pack-*.whl

clean:
	rm -rf $(VENV) $(VENV36) $(VENV_IMAGE) $(VENV_NUMPY) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "gpuconv needs Python 3.11 or newer, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another interpreter: make PYTHON=/path/to/python3.11"; exit 1; } >&2

$(STAMP): pyproject.toml constraints.txt | python
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[torch,cli,bench,dev,docs]'
	$(BIN)/python -m pip install --no-deps 'triton==$(TRITON_LATEST)'
	$(BIN)/python -m pip install --no-deps --upgrade --target $(VENV)/nvrtc $(NVRTC)
	@touch $@

# Without a stamp where they cannot be had: the next run tries again.
$(VENV_IMAGE)/.stamp: Makefile | python
	$(PYTHON) scripts/stacks.py $(VENV_IMAGE) $(IMAGE_PYTHON) $(IMAGE)

$(VENV_NUMPY)/.stamp: Makefile | python
	$(PYTHON) scripts/stacks.py $(VENV_NUMPY) $(NUMPY_PYTHON) 'numpy>=1.26' pytest hypothesis

# Another Triton before everything else of the first environment, which is installed once: torch takes the longest.
# gpuconv itself stays outside: what makes it importable there is a .pth file, which is not followed from another.
$(STAMP36): pyproject.toml constraints.txt | python
	$(PYTHON) -m venv $(VENV36)
	$(VENV36)/bin/python -m pip install --no-deps 'triton==$(TRITON_OLDEST)'
	$(VENV36)/bin/python -c "import sysconfig; folder = sysconfig.get_path('purelib'); \
	  open(folder + '/beside.pth', 'w').write(folder.replace('$(VENV36)', '$(VENV)') + chr(10))"
	@touch $@
