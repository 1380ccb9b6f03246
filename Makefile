# Needs make and Python 3.11 or newer; everything else comes into .venv.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := -c constraints.txt -e ".[train,server,s3,mlflow,dev]"

.PHONY: setup demo check test test-fast test-engine docs

setup: $(STAMP)

# uv takes a minute or two where pip takes several; pip alone does it too. Libraries are compiled to bytecode here, since
# where PYTHONDONTWRITEBYTECODE is set every process would compile them anew: twice the time of starting.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9 \
		&& $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python $(PACKAGES) \
		|| $(BIN)/python -m pip install --disable-pip-version-check $(PACKAGES)
	@touch $@

demo: setup
	$(BIN)/wbc synth demo/slides --slides 2 --fields 3 --seed 1
	$(BIN)/wbc count demo/slides --out demo/out --annotate
	@echo "tables           demo/out/slides, demo/out/differentials, demo/out/cells"
	@echo "annotated fields demo/out/annotated"

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Unit tests alone, on all cores: under a minute on two idle ones.
test-fast: setup
	$(BIN)/pytest -n auto tests/unit

# Two files at a time, those of flows first: they take longest, and much of it is waiting.
test: check
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --cov=wbc --cov=flows --cov-report=term:skip-covered --cov-fail-under=95

# The extra `fast`, which the other tests do without: in a folder of its own, as `--engine auto` takes it where it is
# installed, and what torch counts is what they hold.
FAST := $(VENV)/fast
test-engine: setup
	@test -e $(FAST)/openvino || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-c constraints.txt --target $(FAST) openvino
	PYTHONPATH=$(FAST) $(BIN)/pytest tests/unit/models/test_engines.py

# The site, from the same files: site/index.html. Links and pages that do not exist fail the build.
docs: setup
	$(BIN)/python -c 'import zensical' 2>/dev/null || $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/python docs/site.py
	$(BIN)/zensical build --strict --clean
