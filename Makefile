# make demo        a small cluster: export, list, verify, restore, compare
# make test        the tests; as root on Debian the programs they use are installed first
# make lint        ruff, mypy, and the C core with warnings as errors
# make bench       the benchmarks; NAME=before saves them under that name
# make bench-compare A=before B=after        how much faster B is, benchmark by benchmark
# make compare     diskhaul beside other programs (docs/benchmarks.md); WORK=directory, COMPARE_ARGS='--rounds 3'
# make python-share        how much of an export's CPU time is Python's
# make stress      the tests again and again, with other seeds and more of them at a time; then mutated disks (FUZZ_CASES=20000)
# make fuzz        readers of guests' disks, guided by the code that is reached, without end; FUZZ_ARGS=-max_total_time=600 ends it
# make sanitize    the C core under AddressSanitizer and UndefinedBehaviorSanitizer
# make clean       removes what was made here, the virtual environment included
#
# Everything is set up in .venv by the first call. PYTHON=... chooses the interpreter (3.11 or newer).

PYTHON ?= python3
CC ?= cc
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST_ARGS ?=
WORKERS ?= 2
STRESS_ROUNDS ?= 5
CRASH_IMAGES ?= 960
LOCK_ROUNDS ?= 3000
FUZZ_CASES ?= 20000
FUZZ_COMPARED ?= 2000
FUZZ_ARGS ?=
NAME ?=
WORK ?= build/compare
COMPARE_ARGS ?= --durable --json $(WORK)/results.json --png $(WORK)/results.png
SHARE_ARGS ?=

CORE := $(wildcard native/csrc/*.c native/csrc/*.h)
BUILD := pyproject.toml native/ffi_build.py native/build_backend.py $(CORE)
WARNINGS := -Wall -Wextra -Wconversion -Wshadow -Wpedantic -Wstrict-prototypes -Wmissing-prototypes -Wcast-qual -Werror

# A temporary directory of its own for each run: what another run left mounted in a shared one would disturb this. It goes when the
# shell ends, but not what is still mounted in it.
IN_TEMPORARY := tmp=$$(mktemp -d); trap 'rm -rf --one-file-system "$$tmp"' EXIT;

.PHONY: all demo test lint bench bench-check bench-compare compare python-share stress fuzz sanitize clean

all: $(VENV)/.installed

$(VENV)/.made: scripts/make-venv scripts/apt.sh
	CC="$(CC)" scripts/make-venv "$(PYTHON)" $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.made $(BUILD)
	$(PIP) install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.made $(BUILD)
	$(PIP) install --quiet --editable '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(VENV)/.made $(BUILD)
	$(PIP) install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed $(VENV)/.installed-test

$(VENV)/.installed-bench: $(VENV)/.made $(BUILD)
	$(PIP) install --quiet --editable '.[bench]'
	touch $@ $(VENV)/.installed $(VENV)/.installed-test

$(VENV)/.installed-fuzz: $(VENV)/.made $(BUILD)
	$(PIP) install --quiet --editable '.[fuzz]'
	touch $@ $(VENV)/.installed $(VENV)/.installed-test

demo: $(VENV)/.installed
	scripts/system-packages demo
	scripts/demo.sh

test: $(VENV)/.installed-test
	scripts/system-packages test
	$(IN_TEMPORARY) $(BIN)/python -m pytest --basetemp=$$tmp/t -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(CC) -std=c11 -D_FILE_OFFSET_BITS=64 -O2 $(WARNINGS) -fsyntax-only $(filter %.c,$(CORE))

# The tests' own settings keep pytest-benchmark out.
BENCH := $(BIN)/python -m pytest -o addopts= --import-mode=importlib

bench: $(VENV)/.installed-test
	$(IN_TEMPORARY) $(BENCH) --basetemp=$$tmp/t --benchmark-sort=name --benchmark-group-by=func \
	    --benchmark-columns=median,iqr,min,max,rounds $(if $(NAME),--benchmark-save=$(NAME),--benchmark-autosave) \
	    $(PYTEST_ARGS) benches

bench-compare: $(VENV)/.installed-test
	$(BIN)/python benches/diff.py "$(A)" "$(B)"

# Can the benchmarks be collected, and the programs beside them be started?
bench-check: $(VENV)/.installed-test
	$(BENCH) --collect-only -qq benches
	for program in bare_disk bare_loop compare diff fill python_share; do $(BIN)/python benches/$$program.py --help >/dev/null || exit 1; done

compare: $(VENV)/.installed-bench
	scripts/system-packages compare
	$(BIN)/python benches/compare.py --work $(WORK) $(COMPARE_ARGS)

python-share: $(VENV)/.installed-bench
	scripts/system-packages profile
	$(BIN)/python benches/python_share.py --work $(WORK) $(SHARE_ARGS)

stress: $(VENV)/.installed-test
	scripts/system-packages test
	set -e; for round in $$(seq $(STRESS_ROUNDS)); do \
	    echo "round $$round of $(STRESS_ROUNDS)"; \
	    ( $(IN_TEMPORARY) DISKHAUL_CRASH_IMAGES=$(CRASH_IMAGES) DISKHAUL_LOCK_ROUNDS=$(LOCK_ROUNDS) \
	    $(BIN)/python -m pytest --basetemp=$$tmp/t -q -n $$((2 * $$(nproc))) --dist load --hypothesis-seed=$$(date +%N) $(PYTEST_ARGS) ); \
	done
	$(BIN)/python -m tests.fuzz --cases $(FUZZ_CASES) --seed $$(date +%s)
	$(BIN)/python -m tests.fuzz --compare --cases $(FUZZ_COMPARED) --seed $$(date +%s)

fuzz: $(VENV)/.installed-fuzz
	scripts/system-packages test
	$(BIN)/python -m tests.fuzz.guided $(FUZZ_ARGS)

# A build of its own beside the installed one. Python's own allocator is replaced, so that a write past a buffer is seen; leaks are
# Python's own at exit, and cannot be looked for under strace.
sanitize: $(VENV)/.installed-test
	rm -rf build/sanitize
	DISKHAUL_BUILD=sanitize CC="$(CC)" $(BIN)/python scripts/build-sanitized build/sanitize
	$(IN_TEMPORARY) \
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 PYTHONMALLOC=malloc \
	PYTHONPATH=$(CURDIR)/build/sanitize/lib DISKHAUL_EXPECT_CORE=$(CURDIR)/build/sanitize/lib \
	$(BIN)/python -m pytest --basetemp=$$tmp/t -p no:cacheprovider $(PYTEST_ARGS) tests/native

clean:
	rm -rf $(VENV) build dist *.egg-info native/diskhaul_native/_core.*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
