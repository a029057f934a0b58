# make fit: everything from a bare Python to a trained toy model.   make test: the whole test suite.
PYTHON ?= python3
CONSTRAINTS ?= constraints/tested.txt
BIN := .venv/bin
READY := .venv/.ready
TOY := data/toy/tokenizer/sentencepiece.model

.PHONY: fit env toy test lint types bench

fit: $(READY) $(TOY)
	$(BIN)/onepeace fit --config configs/pretrain/toy.yaml
	$(BIN)/onepeace validate --config configs/pretrain/toy.yaml --ckpt_path runs/toy/checkpoints/best.ckpt --verbose false
	@echo "results: runs/toy/results.json   retrieved pictures: runs/toy/gallery.html, runs/toy/gallery.png"

env: $(READY)

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}: make PYTHON=python3.11 env")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[dev,recipes,lora]'
	@touch $@

toy: $(TOY)

$(TOY): $(READY) $(wildcard data_recipes/toy/*.py)
	$(BIN)/python -m data_recipes.toy --out data/toy --overwrite

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)
	@for name in $(patsubst benchmarks/%.py,%,$(filter-out %/__init__.py %/timing.py %/gpu.py,$(wildcard benchmarks/*.py))); do \
		echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done
