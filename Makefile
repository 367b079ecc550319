# `make book`, `make lab` and `make test` need Python 3.11 or newer, pip, make and git; they set up
# the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: book print lab test check bench fetch slurm sbom clean

book: $(READY)
	$(BIN)/ethalign book

print: $(READY)
	$(BIN)/ethalign book --print

lab: $(READY)
	$(BIN)/jupyter lab notebooks

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

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

# torch first: on Linux a range would bring gigabytes of CUDA to machines without a GPU.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf _build book/_runs book/_generated runs
