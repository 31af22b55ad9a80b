# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STORAGE ?= results
DATA ?= data
SEEDS ?= 0 1 2 3 4 5 6 7 8 9

.PHONY: demo demo-seeds test check benchmark full-shape clean

demo: $(VENV)/.installed ## install, then search the made-up language family
	$(BIN)/python -m orchestrator.sweep demo --storage $(STORAGE)

test: $(VENV)/.installed-test ## install with the test extra, then all tests
	$(BIN)/python -m pytest

check: $(VENV)/.installed-test ## what CI checks besides the tests
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

demo-seeds: $(VENV)/.installed ## the demo's claim on ten seeds; writes benchmarks/demo_seeds.md
	$(BIN)/python -m benchmarks.demo_seeds --storage $(STORAGE)/seeds $(SEEDS)

benchmark: $(VENV)/.installed ## every stage against its plain reference: benchmarks/results.md (40 minutes, 20 GiB)
	$(BIN)/python -m benchmarks

full-shape: $(VENV)/.installed ## seconds and peak memory by stage at XLM-R base's full shape, random weights
	$(BIN)/python -m benchmarks.full_shape --data-root $(DATA)

# a stamp, so that a second call installs nothing
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
