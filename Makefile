# `make bench` and `make test` need Python >= 3.11, git and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: bench baseline reference test test-slow lint types doctest perf clean

bench: .venv/ready
	$(BIN)/embench run quick
	$(BIN)/embench compare

# The run and the figure that README shows. Made beside its place: the records name the commit, and
# with the old ones removed it would not be clean.
baseline: .venv/ready
	rm -rf .baseline
	$(BIN)/embench run quick --out .baseline
	$(BIN)/embench compare .baseline
	mkdir -p results/baseline
	cp .baseline/records.jsonl results/baseline/
	cp .baseline/report/figures/same-start-quality-against-time.png results/baseline/quality-against-time.png
	rm -r .baseline

# About a quarter of an hour; what it finds that is better goes into results/reference. Interrupted,
# it goes on where it stopped.
reference: .venv/ready
	$(BIN)/embench run reference --out .reference
	$(BIN)/embench reference .reference
	rm -r .reference

test: .venv/ready
	$(BIN)/pytest -n 2 --dist loadgroup

test-slow: .venv/ready
	$(BIN)/pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

# What cannot be imported needs a library of the peers, or fails in the tests.
doctest: .venv/ready
	$(BIN)/pytest --doctest-modules --doctest-ignore-import-errors embench

# The second takes about ten minutes; `make perf SPEED=--quick` looks at small cells for seconds.
perf: .venv/ready
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-columns=min,median,iqr,rounds
	$(BIN)/python benchmarks/speed.py $(SPEED)

# Torch first: its pinned version keeps every later step from asking for another one.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"embench needs Python >= 3.11, this is {v.major}.{v.minor}; say for example: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo 'setting up .venv, which takes a minute or two ...'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .asv .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
