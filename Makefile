# make demo | test | slow | matrix | engines | vllm | transformers4 | evaluation | check | faults | bench: each does its own set-up.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
READY := $(VENV)/.ready
READY_TESTS := $(VENV)/.ready-tests
ENGINES := .venv-engines
READY_ENGINES := $(ENGINES)/.ready
VLLM := .venv-vllm
READY_VLLM := $(VLLM)/.ready
TRANSFORMERS4 := .venv-transformers4
READY_TRANSFORMERS4 := $(TRANSFORMERS4)/.ready
EVALUATION := .venv-evaluation
READY_EVALUATION := $(EVALUATION)/.ready

SITE := .venv-site
READY_SITE := $(SITE)/.ready

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test slow matrix engines engines-installed vllm vllm-installed transformers4 evaluation check browser faults bench docs format clean

# torch comes first and pinned, so that no other package pulls a larger build of it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[all]'
	touch $@

$(READY_TESTS): $(READY) requirements-dev.txt tests/real/requirements.txt
	$(PIP) -r requirements-dev.txt
	$(PIP) --no-deps -r tests/real/requirements.txt
	touch $@

demo: $(READY)
	-@$(PIP) --no-deps -r scripts/demo_requirements.txt
	@bash scripts/demo.sh $(BIN)

test: $(READY_TESTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

# What takes long: kills and full disks at many moments, several processes, checkpoints larger than memory.
slow: $(READY_TESTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n 2 --dist loadgroup

# Every command on every model type in every form of file: docs/matrix.md.
matrix: $(READY_TESTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m matrix -n 2 --dist loadgroup tests/matrix

# A virtual environment of its own: the engines must not meet the versions that moeify runs with.
$(READY_ENGINES): tests/engines/requirements.txt constraints.txt
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -r $<
	touch $@

engines-installed: $(READY_ENGINES)

engines: $(READY_TESTS) $(READY_ENGINES)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m engines tests/engines

# Another one, whose packages are of vLLM's own choice.
$(READY_VLLM): tests/engines/vllm-requirements.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q --disable-pip-version-check --no-deps -r $<
	touch $@

vllm-installed: $(READY_VLLM)

vllm: $(READY_TESTS) $(READY_VLLM)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m vllm tests/engines

# And one with the transformers before 5, which many people still have.
$(READY_TRANSFORMERS4): tests/engines/transformers4-requirements.txt
	$(PYTHON) -m venv $(TRANSFORMERS4)
	$(TRANSFORMERS4)/bin/python -m pip install -q --disable-pip-version-check --no-deps -r $<
	touch $@

transformers4: $(READY_TESTS) $(READY_TRANSFORMERS4)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m transformers4 tests/engines

# What makes the site needs nothing of moeify.
$(READY_SITE): docs/requirements.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install -q --disable-pip-version-check --no-deps -r $<
	touch $@

# And one that sees the packages of the tests, and has lm-evaluation-harness besides.
$(READY_EVALUATION): $(READY_TESTS) tests/evaluation/requirements.txt
	$(PYTHON) -m venv $(EVALUATION)
	$(BIN)/python -c 'import site; print(*(f"import site; site.addsitedir({p!r})" for p in site.getsitepackages()), sep="\n")' \
	  > $$($(EVALUATION)/bin/python -c 'import site; print(site.getsitepackages()[0])')/tests.pth
	$(EVALUATION)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -r tests/evaluation/requirements.txt
	touch $@

evaluation: $(READY_EVALUATION)
	OMP_NUM_THREADS=2 $(EVALUATION)/bin/python -m pytest -q -m evaluation tests/evaluation

check: $(READY_TESTS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/cli_reference.py --check
	$(BIN)/python scripts/matrix_page.py --check
	$(BIN)/python scripts/models_page.py --check
	$(BIN)/python scripts/api_page.py --check
	$(BIN)/python scripts/diagrams.py --check
	$(BIN)/python scripts/figures.py --check
	$(BIN)/python scripts/evidence_page.py --check
	$(BIN)/python scripts/check_pins.py

# The page of `moeify inspect --html` in headless Chromium, which the system provides.
browser: $(READY_TESTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/inspection/browser_check.py

# The long form of tests/faults: about half an hour.
faults: $(READY_TESTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --kind kill --moments 200
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --kind disk --moments 200
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.fuzz --inputs 100000 --loading 0
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.fuzz --inputs 5000 --seed 1000000 --loading 1
	if $(PIP) --no-deps atheris==3.0.0; then OMP_NUM_THREADS=1 \
	  $(BIN)/python -m tests.faults.coverage_guided --inputs 20000 --report .cache/coverage.json; fi

bench: $(READY_TESTS)
	$(BIN)/python -m benchmarks.upcycle
	$(BIN)/python -m benchmarks.slices
	$(BIN)/python -m benchmarks.prune --peers
	$(BIN)/python -m benchmarks.inspect_costs

# Pages and figures that are made from code and data, then the site, with every link and anchor checked.
docs: $(READY_TESTS) $(READY_SITE)
	$(BIN)/python scripts/cli_reference.py
	$(BIN)/python scripts/api_page.py
	$(BIN)/python scripts/matrix_page.py
	$(BIN)/python scripts/models_page.py
	$(BIN)/python scripts/diagrams.py
	$(BIN)/python scripts/figures.py
	$(BIN)/python scripts/evidence_page.py
	$(SITE)/bin/sphinx-build -q -W --keep-going -E -b html -c scripts/site docs site
	@echo "open site/index.html"

format: $(READY_TESTS)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(ENGINES) $(VLLM) $(TRANSFORMERS4) $(EVALUATION) $(SITE) site .cache demo-output .mypy_cache .pytest_cache .ruff_cache
