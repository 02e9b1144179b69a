# Two commands for a newcomer, each makes the environment it needs: make quickstart, make test.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Tests side by side, one thread each: small tensors gain nothing by more. Whoever is done takes from the others.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
# With dev,browser the page's tests run too; they also want Debian's chromium.
EXTRAS ?= dev

.PHONY: quickstart test lint check oldest docs site-check build release-check fuzz timm-tests ray-tests device-tests clean

quickstart: $(VENV)/ready
	$(BIN)/python examples/quickstart.py --output quickstart-output

test: $(VENV)/ready
	$(PYTEST)

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(PYTEST) --cov=timm_stitch --cov-report=term:skip-covered

# The oldest versions that pyproject.toml promises.
oldest: $(VENV)-oldest/ready
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist worksteal

# The documentation as a site, in site/; `$(BIN)/python -m mkdocs serve` shows it while writing.
docs: $(VENV)/docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Every page in a browser, wide and narrow, light and dark: links, errors, overflow, contrast, labels, search.
site-check: docs
	$(BIN)/python -m pip install --quiet "playwright>=1.45"
	$(BIN)/python docs/check_site.py --pictures site-pictures

# What is released, in dist/; with TAG=v0.1.0 only if that is the version.
build: $(VENV)-build/ready
	rm -rf dist
	$(VENV)-build/bin/python -m build
	$(VENV)-build/bin/twine check --strict dist/*
	test -z "$$TAG" || test -e "dist/timm_stitch-$${TAG#v}.tar.gz"

# All that a release must pass: the built files, the wheel in a fresh environment, and from the unpacked source
# distribution the quickstart and the tests.
release-check: build
	rm -rf $(VENV)-release && $(PYTHON) -m venv $(VENV)-release
	$(VENV)-release/bin/python -m pip install --quiet dist/*.whl
	cd / && $(abspath $(VENV))-release/bin/python -c "import timm_stitch, timm; timm.create_model('snnet_deit_tsb', device='meta')"
	cd / && $(abspath $(VENV))-release/bin/timm-stitch list
	mkdir dist/source && tar -xzf dist/timm_stitch-*.tar.gz -C dist/source --strip-components=1
	$(MAKE) -C dist/source quickstart test PYTHON=$(PYTHON)

$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

$(VENV)-oldest/ready: pyproject.toml tests/oldest.txt
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --editable ".[dev]" --constraint tests/oldest.txt
	touch $@

$(VENV)/docs-ready: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

$(VENV)-build/ready:
	test -x $(VENV)-build/bin/python || $(PYTHON) -m venv $(VENV)-build
	$(VENV)-build/bin/python -m pip install --quiet build twine
	touch $@

# Serving by replicas, with Ray in an environment of its own.
ray-tests: $(VENV)-ray/ready
	OMP_NUM_THREADS=1 $(VENV)-ray/bin/python -m pytest tests/deployment/serving/test_ray_serve.py

$(VENV)-ray/ready: pyproject.toml
	test -x $(VENV)-ray/bin/python || $(PYTHON) -m venv $(VENV)-ray
	$(VENV)-ray/bin/python -m pip install --quiet --editable ".[dev,ray]"
	touch $@

# One file for ExecuTorch and LiteRT, in an environment of their own.
device-tests: $(VENV)-device/ready
	OMP_NUM_THREADS=1 $(VENV)-device/bin/python -m pytest tests/deployment/test_device_formats.py

$(VENV)-device/ready: pyproject.toml
	test -x $(VENV)-device/bin/python || $(PYTHON) -m venv $(VENV)-device
	$(VENV)-device/bin/python -m pip install --quiet --editable ".[dev,executorch,litert]"
	touch $@

# Broken and hostile files and requests, a few hundred of each; benchmarks/README.md has the long forms.
fuzz: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/robustness/fuzz.py --files 600
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/robustness/fuzz_requests.py --requests 400

# timm's own model tests on our models.
timm-tests: $(VENV)/ready
	$(BIN)/python tests/timm_suite.py

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-build $(VENV)-release $(VENV)-ray $(VENV)-device quickstart-output site site-pictures dist
