PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test test-oldest lint

# Both phases on generated surfaces; the report is runs/demo/report.html.
demo: .venv/installed
	$(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		train.py recipes/demo.yaml

test: lint .venv-space/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The lower end of every range in pyproject.toml, in an environment of its own.
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest -n 2 --dist loadfile

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable ".[test]"
	touch $@

# The environment of space/app.py, without kgl, as on a Space: its tests start it there.
.venv-space/installed: space/requirements.txt constraints.txt
	test -x .venv-space/bin/python || $(PYTHON) -m venv .venv-space
	.venv-space/bin/python -m pip install --quiet --constraint constraints.txt --requirement space/requirements.txt
	touch $@
