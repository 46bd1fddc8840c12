# Everything starts here. `make` says what there is.

PYTHON ?= python3
ARGS ?=
JOBS ?= auto
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore

# step TITLE ADVICE COMMAND...: says what is done and how long it took and, where it fails, what to do.
STEP = step() { title=$$1; advice=$$2; shift 2; began=$$(date +%s); printf '== %s\n' "$$title"; \
	"$$@" || { code=$$?; printf '== FAILED (exit %s): %s; why stands above.\n   What to do: %s\n' \
	"$$code" "$$title" "$$advice" >&2; exit "$$code"; }; \
	printf '== %s: done in %s s\n' "$$title" "$$(($$(date +%s) - began))"; }

.PHONY: help .venv engine rehearse down test lint types docs picture scoreboard clean
help:
	@printf '%s\n' \
	'make rehearse   a simulated GPU cluster on this machine: install, accept, report' \
	'make down       end that cluster and remove its files' \
	'make test       style, types and all tests' \
	'make lint       style and types alone' \
	'make docs       write docs/reference/checks.md from the registry' \
	'make picture    draw docs/report.svg from a rehearsal' \
	'make scoreboard measure every fault and healthy fleets, and write docs/reference/faults.md' \
	'make engine     find or make the programs that a rehearsal runs (done by `make rehearse`, too)' \
	'make .venv      the Python environment (done by all of the above, too)' \
	'make clean      remove what was made here; the cache of the engine stays' \
	'' \
	'PYTHON=python3.12 chooses another Python, ARGS="..." is handed on to gpuready and pytest,' \
	'JOBS=1 runs one test at a time.'

rehearse: .venv
	@$(BIN)/gpuready rehearse run $(ARGS)

down: .venv
	@$(BIN)/gpuready rehearse down $(ARGS)

engine: .venv
	@$(BIN)/python -P -m gpuready.rehearsal.engine

test: lint
	@$(BIN)/python -P -m gpuready.rehearsal.engine > /dev/null || \
	printf "%s\n" "== the tests that need these programs are skipped"
	@$(STEP); step 'tests' 'read the failures above; `make test ARGS="-x -k NAME"` runs fewer' $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: .venv types
	@$(STEP); step 'style' '`.venv/bin/ruff check --fix && .venv/bin/ruff format` mends most of it' \
	sh -c '$(BIN)/ruff check && $(BIN)/ruff format --check'
	@$(STEP); step 'types' 'read the errors above' env MYPYPATH=build/typing $(BIN)/mypy \
	-p gpuready.charts_values -p gpuready.deploys -p gpuready.validators -p gpuready.rehearsal

# The packages are called gpuready.X but lie in X/: mypy finds them through these links.
types:
	@mkdir -p build/typing/gpuready
	@for name in charts_values deploys validators rehearsal; do \
	ln -sfn "../../../$$name" "build/typing/gpuready/$$name" || exit; done

docs: .venv
	@$(BIN)/python -P -c 'from gpuready.validators import catalogue; print(catalogue.markdown(), end="")' \
	> docs/reference/checks.md

picture: .venv
	@$(BIN)/python -P -m gpuready.rehearsal.picture docs/report.svg

scoreboard: .venv
	@$(BIN)/python -P -m gpuready.rehearsal.scoreboard docs/reference/faults.md

clean:
	@if [ -e .rehearsal ] && [ -x $(BIN)/gpuready ]; then $(BIN)/gpuready rehearse down; fi
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- the Python environment ---------------------------------------------------------------------------------

.venv: .venv/.installed
	@:

# A copied or renamed checkout would run the code of the old one.
ifneq ($(CURDIR),$(shell cat .venv/.folder 2>/dev/null))
.venv/.locked: moved
endif
.PHONY: moved

.venv/.locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	printf '%s\n' 'Python 3.11 or newer is needed; $(PYTHON) is not. Name another: make PYTHON=python3.12' >&2; exit 2; }
	@$(STEP); step 'Python environment in .venv' \
	'Debian and Ubuntu keep it apart: apt install python3-venv. If .venv belongs to another user, remove it' \
	$(PYTHON) -m venv --clear .venv
	@if [ -t 1 ]; then bar=; else bar=--quiet; fi; \
	$(STEP); step 'Python packages, pinned by hash in requirements.lock' \
	'check the network (proxies: $$https_proxy; mirrors: $$PIP_INDEX_URL), then run this again' \
	$(BIN)/python -m pip install $$bar --require-hashes -r requirements.lock
	@printf '%s\n' '$(CURDIR)' > .venv/.folder
	@touch $@

.venv/.installed: .venv/.locked pyproject.toml
	@$(STEP); step 'gpuready itself' 'run `make clean`, then this again' \
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@
