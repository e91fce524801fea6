# Everything runs in .venv, which is made on the first call. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SOURCES = setup.py pyproject.toml $(wildcard src/completionport/native/*/*.pyx \
	src/completionport/native/*/*.pxd src/completionport/native/*/*.h)

# Three keep two processors busy.
SIDE_BY_SIDE = -q -n 3 --dist loadscope -m "not alone"

.PHONY: run build test test-windows lint format bench bench-workers races clean

run: build
	$(BIN)/completionport echo $(ARGS)

build: $(VENV)/built

# Side by side, since most wait most of the time, and then those that measure; what ARGS names, in one process.
test: $(VENV)/tested
	$(BIN)/python -m pytest $(or $(ARGS),$(SIDE_BY_SIDE))
	$(if $(ARGS),,$(BIN)/python -m pytest -q -m alone)

# The Windows side, under Wine: the tool says what that takes.
test-windows: $(VENV)/built
	$(BIN)/python tools/windows_tests.py $(ARGS)

lint: $(VENV)/linted
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 -p completionport.win32
	MYPYPATH=src $(BIN)/mypy --config-file= --strict --platform win32 --follow-imports=silent \
		-p completionport.windows
	$(BIN)/python tools/check_types.py

format: $(VENV)/linted
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/benched
	$(BIN)/python benchmarks/run.py $(or $(ARGS),all)

bench-workers: $(VENV)/benched
	$(BIN)/python benchmarks/workers.py $(or $(ARGS),all)

# Not in .ci/run: it takes some minutes.
races:
	tools/race_check.sh $(ARGS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Editable, so that Python files need no new build.
$(VENV)/built: $(BIN)/python $(SOURCES)
	COMPLETIONPORT_COMPILED=1 $(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/tested: $(VENV)/built
	$(BIN)/python -m pip install --quiet 'pytest>=8' 'pytest-timeout>=2.3' 'pytest-xdist>=3.6' \
		'hypothesis>=6.100' 'rich>=13'
	touch $@

$(VENV)/linted: $(VENV)/built
	$(BIN)/python -m pip install --quiet 'ruff>=0.6' 'mypy>=1.11' 'pyright[nodejs]>=1.1.380'
	touch $@

$(VENV)/benched: $(VENV)/built
	$(BIN)/python -m pip install --quiet 'uvloop>=0.21'
	touch $@

clean:
	rm -rf $(VENV) build src/completionport/native/*/*.c src/completionport/native/*/*.so
