# Every target sets up .venv by itself and reuses it. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
OUT ?= runs/demo

.PHONY: setup demo test test-all check bench faults store scale search arena images translation clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: setup
	rm -rf $(OUT)
	$(BIN)/bezierdistill demo --out $(OUT)

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-all: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/pyright
	$(BIN)/python -m pytest -m "not slow"

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
	$(BIN)/python benchmarks/arena.py --out runs/arena

images: setup
	$(BIN)/python benchmarks/images.py --out runs/images

translation: setup
	for pair in mnist-usps sandal-boot; do $(BIN)/python benchmarks/translation.py --pair $$pair --budget 2000000 --out runs/translation; done

clean:
	rm -rf .venv runs
