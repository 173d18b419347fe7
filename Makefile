# d2_deformable: setup, tests, demo and benchmarks from a fresh checkout. `make help` lists the targets.
#
#   PYTHON=python3.12     the Python that creates .venv (3.11 to 3.13)
#   D2_SOURCE=git|pypi    where Detectron2 comes from (see d2_deformable/cli/install_detectron2.py)
#   TORCH=2.11.0          another PyTorch than constraints.txt pins, of TORCHVISION_* below; .venv keeps it until the next TORCH=
#   MAX_JOBS=2            number of parallel compilers
#   LOCKED=1              install what .ci/requirements.lock names, and nothing with another SHA-256 (not with TORCH=)
#   TEST_JOBS=2           number of parallel test processes, of one thread and about 2 GB each
#   FUZZ_SECONDS=60       duration of make fuzz, shared by its targets
#   FORCE_CUDA=0|1        build without CUDA, or require it (see setup.py); after a change run make clean first
#   TORCH_CUDA_ARCH_LIST  GPU architectures of the CUDA kernels, e.g. "8.0;9.0" (default: those of the visible GPUs, or all)

PYTHON ?= python3
D2_SOURCE ?= auto
MAX_JOBS ?= $(shell nproc)
TEST_JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 600
export D2_SOURCE MAX_JOBS

VENV := .venv

# The torchvision that belongs to each supported torch; docs/versions.md says what was run with which.
TORCHVISION_2.11.0 := 0.26.0
TORCHVISION_2.12.1 := 0.27.1
TORCHVISION_2.13.0 := 0.28.0
TORCHVISION_2.14.1 := 0.29.1
TORCH ?= $(shell sed -n 's/^torch==//p' $(VENV)/constraints.txt 2>/dev/null)

# Every pip below uses the same constraints file, including those that Detectron2's installer starts.
CONSTRAINTS := $(if $(TORCH),$(VENV)/)constraints.txt
REQUIREMENTS := $(if $(and $(LOCKED),$(if $(TORCH),,1)),--require-hashes -r .ci/requirements.lock,-r $(CONSTRAINTS))
export PIP_CONSTRAINT := $(CONSTRAINTS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

PY := $(VENV)/bin/python
PIP := $(PY) -m pip
LOG := $(VENV)/setup.log
CSRC := $(shell find csrc -type f 2>/dev/null)
CXX_FILES := $(filter %.h %.cpp %.cu %.cuh,$(CSRC) $(shell find tests/cuda_emulator tests/thread_sanitizer docs/cpp -type f))

# All tests of a file run in one process, since they share fixtures.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_JOBS) --dist loadfile

# $(call quietly,command): write the command's output to a log, and show the whole log if it fails.
quietly = { $(1); } >$(LOG) 2>&1 || { cat $(LOG); echo "make: this failed: $(1)"; exit 1; }

# The name of the checkpoint in d2_deformable/model_zoo, and of its YAML in configs/model_zoo.
ZOO := warped_shapes_rfcn_R_18_dconv3_dpool

.PHONY: always help setup demo zoo results bench docs test test-all fuzz sanitize build-cuda cuda-all lint format lock sbom clean

help: ## list the targets (default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.deps $(VENV)/.detectron2 $(VENV)/.ops ## .venv with pinned dependencies, Detectron2 and the compiled operators

demo: setup ## train a deformable R-FCN on shapes (at most 10 min on 2 cores) and write output/demo/report.html
	$(PY) -m d2_deformable demo

zoo: setup ## train the model zoo's checkpoint anew (about an hour), evaluate it and put it into d2_deformable/model_zoo
	$(PY) train_net.py --config-file configs/model_zoo/$(ZOO).yaml OUTPUT_DIR output/model_zoo
	$(PY) -m d2_deformable publish output/model_zoo

results: setup ## train what docs/RESULTS.md still lacks, show progress and bring its tables up to date (needs the photographs under DETECTRON2_DATASETS)
	$(PY) -m benchmarks.learning.queue

bench: setup ## the operators' speed beside a plain convolution and torchvision, on one CPU thread (half an hour; see benchmarks/README.md)
	$(PY) -m benchmarks.ops --threads 1

docs: setup ## the documentation site in build/docs; warnings are errors
	$(PY) -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/docs
	@echo "make: wrote build/docs/index.html"

test: setup lint ## lint and all tests but the slow ones
	$(PYTEST) -m "not slow" --durations 10

test-all: test ## the slow tests (big networks) as well
	$(PYTEST) -m slow --durations 10

fuzz: setup ## run hostile inputs, guided by coverage (10 min); findings are in build/fuzz (see tests/fuzz/run.py)
	OMP_NUM_THREADS=1 $(PY) tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

sanitize: setup ## 100,000 cases of the operators under AddressSanitizer and UBSan, 10,000 under ThreadSanitizer (two hours)
	$(PY) tools/sanitize.py address --cases 100000
	$(PY) tools/sanitize.py thread --cases 10000

build-cuda: $(VENV)/.deps ## compile the operators for CUDA (sm_90), with or without a GPU, into build/cuda
	@$(call quietly,$(PY) tools/build_cuda.py 9.0)
	@tail -n 2 $(LOG)

cuda-all: $(VENV)/.deps ## the same for every architecture, sm_75 to sm_120
	@$(call quietly,$(PY) tools/build_cuda.py)
	@tail -n 2 $(LOG)

lint: $(VENV)/.deps ## check style and types: ruff and mypy for Python, clang-format for C++ and CUDA
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(if $(CXX_FILES),$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES))

format: $(VENV)/.deps ## rewrite the sources in that style
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .
	$(if $(CXX_FILES),$(VENV)/bin/clang-format -i $(CXX_FILES))

lock: ## write .ci/requirements.lock anew, after a change of constraints.txt
	@$(call quietly,$(PIP) install --target build/uv uv==0.13.9)
	UV_CUSTOM_COMPILE_COMMAND="make lock" build/uv/bin/uv pip compile constraints.txt -o .ci/requirements.lock \
	  --universal --python-version 3.11.5 --generate-hashes --no-annotate --quiet

sbom: setup ## the installed packages with their licences, as CycloneDX, in build/sbom.json
	@$(PYTHON) -m venv build/sbom
	@$(call quietly,build/sbom/bin/python -m pip install cyclonedx-bom==7.5.0)
	build/sbom/bin/cyclonedx-py environment $(PY) -o build/sbom.json

clean: ## remove what was built and cached; .venv (rm -rf .venv starts over) and output/ stay
	rm -rf build *.egg-info d2_deformable/*.so .mypy_cache .pytest_cache .ruff_cache $(VENV)/.ops
	find d2_deformable tests tools benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# Finished steps are skipped: each file below is touched when its step is done.

# constraints.txt with another torch, written only when it differs, so that nothing is installed twice.
$(VENV)/constraints.txt: constraints.txt always
	@test "$(TORCHVISION_$(TORCH))" || { \
	  echo "make: TORCH=$(TORCH) is not supported: use $(patsubst TORCHVISION_%,%,$(sort $(filter TORCHVISION_%,$(.VARIABLES))))"; exit 1; }
	@mkdir -p $(VENV)
	@sed -E 's/^(torch)==.*/\1==$(TORCH)/; s/^(torchvision)==.*/\1==$(TORCHVISION_$(TORCH))/' $< >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(VENV)/.deps: $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "make: Python 3.11, 3.12 or 3.13 is needed, '$(PYTHON)' is not one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' cannot make virtual environments: apt install python3-venv"; exit 1; }
	@command -v $(firstword $(CXX)) >/dev/null || { \
	  echo "make: no C++ compiler '$(firstword $(CXX))': apt install g++"; exit 1; }
	@echo "make: installing the pinned dependencies into $(VENV) (PyTorch is large: this takes minutes)"
	@$(PYTHON) -m venv $(VENV)
	@sed -n '/^\(packaging\|pip\|setuptools\|wheel\)==/,/[^\\]$$/p' .ci/requirements.lock >$(VENV)/builders.txt
	@$(call quietly,$(PIP) install $(if $(LOCKED),--require-hashes -r $(VENV)/builders.txt,pip setuptools wheel))
	@$(call quietly,$(PIP) install --no-build-isolation $(REQUIREMENTS))
	@touch $@

$(VENV)/.detectron2: $(VENV)/.deps tools/install_detectron2.py d2_deformable/cli/install_detectron2.py
	@$(PY) tools/install_detectron2.py
	@touch $@

# pip compiles in a new folder every time. If only csrc/ changed, use build/, where ninja skips objects that are up to date.
INSTALL = $(PIP) install -v --no-build-isolation --no-deps -e .
REBUILD = $(PY) setup.py build_ext --inplace

$(VENV)/.ops: setup.py $(CSRC) $(VENV)/.deps | $(VENV)/.detectron2
	@echo "make: compiling the operators (takes a minute or two)"
	@$(call quietly,$(if $(filter-out csrc/%,$?),$(INSTALL),$(REBUILD)))
	@sed -n 's/^ *\(d2_deformable: .*\)/\1/p' $(LOG) | sort -u
	@touch $@
