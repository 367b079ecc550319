# `make book`, `make lab` and `make test` need Python 3.11 or newer, pip, make and git; they set up
# the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: book print lab test check bench fetch slurm sbom lock clean

book: $(READY)
	$(BIN)/ethalign book

print: $(READY)
	$(BIN)/ethalign book --print

lab: $(READY)
	$(BIN)/jupyter lab notebooks

# Tests wait for the processes that they start: one worker more than there are cores leaves none idle.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

test: $(READY)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

fetch: $(READY)
	$(BIN)/ethalign fetch

slurm: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[cluster]"
	VENV=$(VENV) tests/slurm.sh

# Against others, which are installed beside; takes about an hour on a machine left alone.
bench: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[benchmark]"
	$(BIN)/python benchmarks/run.py

# What is installed, with versions and licences, as a CycloneDX bill of materials.
sbom: $(READY)
	$(PYTHON) -m venv _build/sbom
	_build/sbom/bin/pip install --quiet --disable-pip-version-check "cyclonedx-bom>=7,<8"
	_build/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml \
	  --output-file _build/sbom.cdx.json $(BIN)/python

# constraints.txt with hashes; see LOCKED below.
lock:
	$(PYTHON) -m venv _build/lock
	_build/lock/bin/pip install --quiet --disable-pip-version-check "pip-tools>=7"
	_build/lock/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
	  --no-annotate --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --extra dev -c constraints.txt -o _build/lock/all.txt pyproject.toml
	sed '/--hash/q' constraints.lock > _build/lock/head.txt
	sed -e '/^torch==/,/[^\\]$$/d' -e '/^#/d' _build/lock/all.txt > _build/lock/rest.txt
	cat _build/lock/head.txt _build/lock/rest.txt > constraints.lock

# With LOCKED=1 every package is checked against the hashes of constraints.lock. Otherwise torch
# comes first: on Linux a range would bring gigabytes of CUDA to machines without a GPU.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
ifdef LOCKED
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r constraints.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
else
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
endif
	touch $@

clean:
	rm -rf _build book/_runs book/_generated runs
