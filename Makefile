# What can be done in a checkout. Every target first makes the virtual environment that it runs in.

PYTHON ?= python3
ARGS ?=
GOLDENS ?=
JOBS ?= 2

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-parallel demo test test-slow lint docs sanitize gpu-check exactness goldens published-figures \
	bench-throughput lungmosaic clean FORCE

# TensorFlow's start-up notices hide what the commands say; its errors stay.
export TF_CPP_MIN_LOG_LEVEL ?= 2

# One environment per Python version, so that both runtimes live side by side.
VERSION := $(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv/$(VERSION)
PARALLEL := mpi
RUN := $(VENV)/bin/python
PIP := pip>=23
ifeq ($(VERSION),3.7)
PIP := pip>=23,<24.1
PARALLEL := horovod
# For TensorFlow and MPI only: whatever else Horovod finds on the machine it would build for as well.
export HOROVOD_WITH_TENSORFLOW := 1
export HOROVOD_WITH_MPI := 1
export HOROVOD_WITHOUT_PYTORCH := 1
export HOROVOD_WITHOUT_MXNET := 1
export HOROVOD_WITHOUT_GLOO := 1
endif

C_FILES := $(wildcard tf_um_patch/csrc/*/*.c tests/tf_um_patch/native/*.c)
C_SOURCES := $(C_FILES) $(wildcard tf_um_patch/csrc/*.h tf_um_patch/csrc/*/*.h tf_um_patch/csrc/*/*.cc)
C_WARNINGS := -std=c11 -Wall -Wextra -Wstrict-prototypes -Werror -Itf_um_patch/csrc

# The stamp is written last and holds the folder of the checkout. An environment without it was left half made, one
# with another folder was copied from elsewhere and would run that checkout's code, and its interpreter may be gone.
STAMP := $(VENV)/installed
INTACT := $(shell $(RUN) -c '' 2>/dev/null && [ "$$(cat $(STAMP) 2>/dev/null)" = "$(CURDIR)" ] && echo yes)

help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r target text; \
		do printf '  make %-18s %s\n' "$$target" "$$text"; done
	@echo
	@echo '  PYTHON=python3 chooses the Python and with it the runtime: 3.10 to 3.13 (TensorFlow 2.21) or 3.7 (1.15).'
	@echo '  JOBS=2 is how many processes run the tests of make test; 0 runs them in its own.'
	@echo '  ARGS=... is added to the command that a target runs, as in: make test ARGS="-k canvas"'

setup: $(STAMP) ## Make the virtual environment .venv/<version>, or bring it up to date.
	@echo "$(VENV) is ready; to work in it: . $(VENV)/bin/activate"

setup-parallel: $(STAMP) ## Add what training in several processes needs; apt-get install openmpi-bin first.
	$(RUN) -m pip install --disable-pip-version-check -e '.[$(PARALLEL)]'

demo: $(STAMP) ## Make synthetic slides, train on them, test, and say where the results are.
	$(RUN) -m whole_slide_cnn.demo --output results/demo $(ARGS)

test: $(STAMP) ## Run the tests, in JOBS processes.
	$(RUN) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-slow: $(STAMP) ## Run the tests that take minutes each.
	$(RUN) -m pytest -m slow $(ARGS)

lint: $(STAMP) ## Check style, formatting and types of all Python files, formatting and warnings of all C files.
	$(RUN) -m ruff check $(ARGS)
	$(RUN) -m ruff format --check
	@if [ -x $(VENV)/bin/mypy ]; then echo mypy; $(RUN) -m mypy; \
		else echo 'types are left out: mypy needs Python 3.10'; fi
	@if [ -x $(VENV)/bin/clang-format ]; then echo clang-format --dry-run -Werror '...'; \
		$(VENV)/bin/clang-format --dry-run -Werror --fallback-style=none $(C_SOURCES); \
		else echo 'the formatting of C files is left out: clang-format needs Python 3.10'; fi
	@if command -v gcc >/dev/null; then echo gcc $(C_WARNINGS) -fsyntax-only '...'; \
		gcc $(C_WARNINGS) -fsyntax-only $(C_FILES); else echo 'C files are left out: there is no gcc'; fi

docs: $(STAMP) ## Build the documentation site into site/; a broken link is an error.
	@[ -x $(VENV)/bin/mkdocs ] || $(RUN) -m pip install --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict $(ARGS)

sanitize: $(STAMP) ## Run the C code under the address, undefined behaviour and thread sanitizers.
	$(RUN) -m pytest tests/tf_um_patch/test_shim_sanitizers.py $(ARGS)

gpu-check: $(STAMP) ## Check on a GPU what docs/unified-memory.md says of one, within a small budget of its memory.
	$(RUN) -m tf_um_patch gpu-check $(ARGS)

exactness: $(STAMP) ## Compare loss and gradients of every engine with direct, and write results/exactness.json.
	$(RUN) benchmarks/exactness.py --json results/exactness.json $(ARGS)

goldens: $(if $(GOLDENS),$(STAMP)) ## Check results of the published implementation: make goldens GOLDENS='a.json b.json'
	@[ -n "$(GOLDENS)" ] || { echo "error: name the files, as in: make goldens GOLDENS='a.json b.json'" >&2; exit 2; }
	$(RUN) tests/goldens.py $(GOLDENS) $(ARGS)

published-figures: $(STAMP) ## Compare the planner with the papers' figures, and write results/published-figures.json.
	$(RUN) benchmarks/published_figures.py --json results/published-figures.json $(ARGS)

bench-throughput: $(STAMP) ## Measure images/min and memory of every engine, within 9 minutes, and write results/throughput/.
	$(RUN) benchmarks/throughput.py $(ARGS)

lungmosaic: $(STAMP) ## Compare poolings on small and large lesions: make lungmosaic ARGS='--photographs FOLDER'
	$(RUN) benchmarks/lungmosaic.py $(ARGS)

clean: ## Remove virtual environments and caches; results/ stays.
	rm -rf .venv build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.git -prune -o -path ./results -prune -o -path ./data -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(STAMP): setup.py $(if $(INTACT),,FORCE)
	@[ -n "$(VERSION)" ] || { echo "error: cannot run $(PYTHON); install Python 3.10 to 3.13 with:" \
		"apt-get install python3 python3-venv, or give the path of another Python: PYTHON=<path>" >&2; exit 1; }
	@"$(PYTHON)" tools/check_python.py
	$(if $(INTACT),,"$(PYTHON)" -m venv --clear $(VENV))
	@rm -f $@
	$(RUN) -m pip install --disable-pip-version-check '$(PIP)'
	$(RUN) -m pip install --disable-pip-version-check -e '.[test,lint]'
	@echo "$(CURDIR)" > $@

FORCE:
