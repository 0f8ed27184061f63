# Everything here sets up its own .venv from python3.11+ and make alone.
#   make demo   attack a real model on 20 real images, and write the report
#   make demo-gate  what `robust-eval gate` says of models that pass, fail, or cannot be decided (three minutes)
#   make test   the tests (under ten minutes on two cores);  make test-all adds the slow ones and those against other libraries
#               (make test-rest runs these alone)
#   make fuzz   damaged files and odd words, for SECONDS=60 each kind; a failing example is printed (docs/faults.md)
#   make bench  measure speed and memory, into docs/benchmarks.md;  make lint  ruff and mypy
#   make attack-table  write the table of docs/attacks.md again, from what is registered
#   make peers  compare strength with other libraries (hours; a run that was stopped goes on), the figures of docs/peers.md
#   make audit  look the installed packages up among known vulnerabilities (asks PyPI);  make sbom  list them in sbom.json (CycloneDX)
#   make phantoms  train the bundled models for synthetic phantoms again (ten minutes)
#   make zoo    train the bundled models again and hold them to their cards (under 45 minutes on two cores)
#               FULL=1 measures them on all test images (hours); UPDATE=1 puts them in the place of those that are there

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null && echo $$p && break; done)
CONSTRAINTS ?=
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

# idle OpenMP threads that spin made two threads up to fifty times slower on a shared machine
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo demo-gate test test-all test-rest fuzz bench peers zoo phantoms screenshots attack-table audit sbom lint clean

demo: .venv/demo
	$(BIN)/robust-eval --model efficientnet_lite0 --attack fgsm --attack pgd

demo-gate: .venv/demo
	docs/examples/gate/demo.sh $(BIN)/robust-eval

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

test-all: .venv/peers
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile -m "not gpu"

test-rest: .venv/peers
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile -m "(slow or peers) and not gpu"

SECONDS ?= 60
fuzz: .venv/dev
	FUZZ_SECONDS=$(SECONDS) OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --timeout-method=thread --timeout=$$(($(SECONDS) + 300)) -rP tests/fuzz

bench: .venv/peers
	$(BIN)/python tests/benchmarks/measure.py

peers: .venv/peers
	OMP_NUM_THREADS=1 $(BIN)/python tests/peers_table.py

zoo: .venv/demo
	$(BIN)/python -m robustbench_lite.defenses.zoo.make $(if $(UPDATE),--update) $(if $(FULL),--full)

phantoms: .venv/demo
	$(BIN)/python -m robustbench_lite.defenses.phantoms.make $(if $(UPDATE),--update)

screenshots: .venv/demo
	$(BIN)/python docs/screenshots.py

attack-table: .venv/demo
	$(BIN)/python docs/attack_table.py

# --strict: a package that cannot be looked up is an error; without it all would be well where PyPI cannot be reached
audit: .venv/demo .venv-audit
	$(BIN)/python -m pip freeze --exclude-editable | sed "s/+[a-z0-9.]*$$//" > .venv-audit/installed.txt
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement .venv-audit/installed.txt

sbom: .venv/demo .venv-sbom
	.venv-sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file sbom.json $(BIN)/python

.venv-audit .venv-sbom:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet --disable-pip-version-check $(if $(findstring audit,$@),pip-audit,cyclonedx-bom) || { rm -rf $@; exit 1; }

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy attacks corruptions defenses reports --explicit-package-bases

.venv/demo: pyproject.toml | .venv
	$(PIP) --editable '.[demo]'
	@touch $@

.venv/dev: pyproject.toml | .venv
	$(PIP) --editable '.[demo,dev]'
	@touch $@ .venv/demo

.venv/peers: tests/peers.txt .venv/dev
	$(PIP) --no-deps --requirement tests/peers.txt
	@touch $@

.venv:
	@test -n "$(PYTHON)" || { echo 'python 3.11 or newer is needed: make PYTHON=/path/to/python3.11'; exit 1; }
	$(PYTHON) -m venv .venv
	@echo 'installing into .venv; torch is large, the first time takes minutes'

clean:
	rm -rf .venv .venv-audit .venv-sbom sbom.json build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
