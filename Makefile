# Two commands for a newcomer:  make demo   and   make test.   Everything else is convenience.
PYTHON ?= python3
# A CPU build is enough for the tests. `make test TORCH=` leaves torch out and skips what needs it.
TORCH ?= torch==2.13.0

.PHONY: demo test docs bench clean

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
	.venv-test/bin/python -m pytest -n 2 --doctest-modules --doctest-ignore-import-errors src/spineps docs/hooks tests

# Offline and strict: a dead link, a page outside of the menu or anything that would be loaded from the network ends it.
.venv-test/docs-ok: .venv-test/ok
	.venv-test/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	touch $@

docs: .venv-test/docs-ok
	NO_MKDOCS_2_WARNING=1 .venv-test/bin/mkdocs build --strict --quiet
	@echo build/site/index.html

bench: .venv-test/ok
	.venv-test/bin/python benchmarks/first_light.py --data "$(DATA)"

clean:
	rm -rf .venv-demo .venv-test demo build dist src/*.egg-info
