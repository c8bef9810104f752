# Everything runs from .venv, which is made on first use and remade when the dependencies change.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench install clean

demo: .venv/installed
	$(BIN)/hf-ext demo

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/installed
	$(BIN)/hf-ext bench all

install: .venv/installed

.venv/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[data,onnx,native,test]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info demo/index.html
