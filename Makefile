# Two commands for a newcomer:  make demo   and   make test.   Everything else is convenience.
PYTHON ?= python3
# A CPU build is enough for the tests. `make test TORCH=` leaves torch out and skips what needs it.
TORCH ?= torch==2.13.0

.PHONY: demo test check bench clean

.venv-demo/ok: pyproject.toml
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --disable-pip-version-check .
	touch $@

demo: .venv-demo/ok
	.venv-demo/bin/spineps demo --out demo

.venv-test/ok: pyproject.toml
	$(PYTHON) -m venv .venv-test
	test -z "$(TORCH)" || .venv-test/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-test/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

test: .venv-test/ok
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy
	.venv-test/bin/python -m pytest -n 2 --doctest-modules --doctest-ignore-import-errors src/spineps tests

bench: .venv-test/ok
	.venv-test/bin/python benchmarks/first_light.py --data "$(DATA)"

clean:
	rm -rf .venv-demo .venv-test demo build dist src/*.egg-info
