# Two commands for a newcomer, each makes the environment it needs: make quickstart, make test.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# With dev,browser the page's tests run too; they also want Debian's chromium.
EXTRAS ?= dev

.PHONY: quickstart test check oldest timm-tests clean

quickstart: $(VENV)/ready
	$(BIN)/python examples/quickstart.py --output quickstart-output

test: $(VENV)/ready
	$(BIN)/python -m pytest

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --cov=timm_stitch --cov-report=term:skip-covered

# The oldest versions that pyproject.toml promises.
oldest: $(VENV)-oldest/ready
	$(VENV)-oldest/bin/python -m pytest -m "not slow"

$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

$(VENV)-oldest/ready: pyproject.toml tests/oldest.txt
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --editable ".[dev]" --constraint tests/oldest.txt
	touch $@

# timm's own model tests on our models.
timm-tests: $(VENV)/ready
	$(BIN)/python tests/timm_suite.py

clean:
	rm -rf $(VENV) $(VENV)-oldest quickstart-output
