.PHONY: install test slow lint types house quickstart

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

quickstart:
	python examples/quickstart.py
