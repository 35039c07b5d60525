.PHONY: install test slow lint types quickstart

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

quickstart:
	python examples/quickstart.py
