# Needs make and Python 3.11 or newer; everything else comes into .venv.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := -c constraints.txt -e ".[train,dev]"

.PHONY: setup demo check test

setup: $(STAMP)

# uv takes a minute where pip takes several; pip alone does it too.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9 \
		&& $(BIN)/uv pip install --python $(BIN)/python $(PACKAGES) \
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

test: check
	$(BIN)/pytest
