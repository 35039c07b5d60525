.PHONY: install test slow lint types house docs quickstart

install:
	pip install -c constraints.txt -e ".[demo,test,dev]"

test:
	pytest

slow:
	pytest -m slow

lint:
	ruff check .
	ruff format --check .

types:
	mypy

house:
	python tests/test_house.py

docs:
	mkdocs build --strict

quickstart:
	python examples/quickstart.py
