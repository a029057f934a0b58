# make fit: everything from a bare Python to a trained toy model.   make test: the whole test suite.
# fit installs the package alone; test, lint, types and docs add what development needs.
PYTHON ?= python3
CONSTRAINTS ?= constraints/tested.txt
BIN := .venv/bin
CORE := .venv/.core
READY := .venv/.ready
TOY := data/toy/tokenizer/sentencepiece.model

.PHONY: fit env toy test lint types docs bench

fit: $(CORE) $(TOY)
	$(BIN)/onepeace fit --config pretrain/toy
	$(BIN)/onepeace validate --config pretrain/toy --ckpt_path best
	@echo "results: runs/toy/results.json   what was retrieved: runs/toy/report.html"

env: $(READY)

$(CORE): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}: make PYTHON=python3.11 env")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile -c $(CONSTRAINTS) -e .
	@touch $@

$(READY): $(CORE)
	$(BIN)/python -m pip install --quiet --no-compile -c $(CONSTRAINTS) -e '.[compare,dev,docs,export,heif,hf,index,loggers,lora,mteb,ray,recipes,sentence-transformers,serve,transformers,video]'
	@touch $@

toy: $(TOY)

$(TOY): $(CORE) $(wildcard data_recipes/toy/*.py)
	$(BIN)/python -m data_recipes.toy --out data/toy --overwrite

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Minutes each. benchmarks.gpu needs a GPU; data_types, differences and open_clip are studies (docs/performance.md).
BENCHMARKS := packed loader embed startup search precision memory_arithmetic contrast_memory bias_memory checkpoint_memory

bench: $(READY)
	@for name in $(BENCHMARKS); do echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done
