# make demo    set everything up and serve the FramePack-F1 page; ARGS="--port 7861" passes options on
# make test    set everything up and run the tests
# make browser install Chromium for the tests of the page, where apt and the rights for it exist

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo test lint browser

demo: $(VENV)/.runtime
	$(BIN)/python demo_gradio_f1.py $(ARGS)

test: $(VENV)/.development lint browser
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

browser:
	@sh tests/install_browser.sh

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.development: requirements.txt requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@ $(VENV)/.runtime
