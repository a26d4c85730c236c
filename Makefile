# Every target sets up .venv by itself and reuses it. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DOCS := .venv/.docs
BROWSER := .venv/.browser
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
TEST := $(BIN)/python -m pytest -m "not slow and not browser"
SITE := $(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env --builder html
# Processes, of one thread each, that share the tests.
WORKERS ?= 2
OUT ?= runs/demo
# Processes, of one thread each, that share the cells of an arena.
JOBS ?= 1

.PHONY: setup demo app test test-portable test-all test-browser test-wheel check docs docs-all wheel bench faults store scale search arena own images video translation text text-to-image bundled clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "Installing the package and its tools into .venv, once: pip takes some minutes and is silent ..."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable ".[dev]"
	touch $(READY)

$(DOCS): $(READY)
	@echo "Installing what builds the documentation into .venv, once: pip takes a minute and is silent ..."
	$(INSTALL) --editable ".[dev,docs]"
	touch $(DOCS)

$(BROWSER): $(READY)
	@echo "Installing a browser for the tests, once: this takes some minutes and is silent ..."
	$(INSTALL) --editable ".[dev,browser]"
	command -v chromium || command -v google-chrome || $(BIN)/python -m playwright install --with-deps chromium || apt-get install --yes chromium
	touch $(BROWSER)

demo: setup
	$(BIN)/bezierdistill demo --out $(OUT)

app: setup
	$(BIN)/bezierdistill app

test: setup
	@echo "Running the tests in $(WORKERS) processes: some minutes, a dot for each that passes ..."
	@OMP_NUM_THREADS=1 $(TEST) --numprocesses $(WORKERS)
	@echo "All tests have passed: the installation works."

# The tests under other kernels and numbers of threads: what holds must not depend on the processor.
test-portable: setup
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1 $(TEST) --numprocesses $(WORKERS)
	ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 $(TEST)

test-all: $(DOCS)
	$(BIN)/python -m pytest -m "not browser"

test-browser: $(BROWSER)
	$(BIN)/python -m pytest -m browser

check: $(DOCS)
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/pyright
	OMP_NUM_THREADS=1 $(TEST) --numprocesses $(WORKERS)

# The site into site/; without the outputs of the notebooks, which run for minutes.
docs: $(DOCS)
	@echo "Building site/ without running the notebooks (make docs-all runs them) ..."
	$(SITE) --define nb_execution_mode=off docs site

docs-all: $(DOCS)
	@echo "Running the notebooks and building site/: some minutes ..."
	$(SITE) docs site

wheel: setup
	rm -rf dist
	$(BIN)/python -m build --wheel

test-wheel: wheel
	PYTHON=$(PYTHON) tests/wheel.sh

bench: setup
	$(BIN)/python benchmarks/overhead.py

faults: setup
	$(BIN)/python benchmarks/faults.py

store: setup
	$(BIN)/python benchmarks/store.py

scale: setup
	$(BIN)/python benchmarks/scale.py

search: setup
	$(BIN)/python benchmarks/search.py --out runs/search

arena: setup
	$(BIN)/python benchmarks/arena.py --jobs $(JOBS) --out runs/arena

own: setup
	$(BIN)/python benchmarks/own_module.py --out runs/own

images: setup
	$(BIN)/python benchmarks/images.py --jobs $(JOBS) --out runs/images

video: setup
	$(BIN)/python benchmarks/video.py --jobs $(JOBS) --out runs/video

translation: setup
	for pair in mnist-usps sandal-boot; do $(BIN)/python benchmarks/translation.py --pair $$pair --budget 2000000 --out runs/translation; done

# WORDS is a word list (Debian: wamerican); PROSE a text, without which there are words alone.
WORDS ?= /usr/share/dict/american-english
PROSE ?=
text: setup
	$(BIN)/python benchmarks/text.py --words $(WORDS) $(if $(PROSE),--prose $(PROSE)) --jobs $(JOBS) --out runs/text

# A small pipeline that is trained here, distilled to one adapter: an hour and a half of one core.
text-to-image: setup
	for seed in 0 1 2; do $(BIN)/python benchmarks/text_to_image.py --base runs/small --out runs/text-to-image --seed $$seed || exit 1; done

bundled: setup
	$(BIN)/python benchmarks/bundled.py --out runs/bundled

clean:
	rm -rf .venv runs site dist
