# Two commands matter: `make chat` sets everything up and opens a chat; `make test` sets everything up and runs the tests.
# Everything lands in .venv; the model and the built engine land in your user cache, so a second clone starts at once.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
# On all cores, where pip compiles one file after the other. Some packages bring files for other versions of Python.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
# Arguments for the tests, for example: make test ARGS="-k catalog"
ARGS ?=

.PHONY: help chat voice test test-models coverage prove check lint format docs install install-dev install-ecosystem model lock snapshots bench clean
.DEFAULT_GOAL := help

help:  ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

chat: install  ## Set up everything and open a terminal chat with the embedded model.
	@$(BIN)/edge models pull smollm2-135m --quiet
	@$(BIN)/edge chat

voice: install  ## Set up voice: its packages, its models, and a check of the sound devices.
	@sh tools/setup_voice.sh $(BIN)

test: install-dev  ## Set up everything, check the code and run all tests.
	@$(MAKE) --no-print-directory -j2 lint install-ecosystem test-models
	EDGE_TEST_MODEL="$$($(BIN)/edge models show smollm2-135m --format gguf --path)" \
	EDGE_TEST_GEMMA="$$($(BIN)/edge models show gemma3-270m --format gguf --path)" \
	EDGE_TEST_VOICE="$$($(BIN)/edge config get paths.models_dir)" \
		sh tools/run_tests.sh $(BIN)/python $(ARGS)

prove: install-dev install-ecosystem model  ## Run the long proofs whole: 700 kills, 10,000 damaged files, thousands of random cases.
	@$(BIN)/edge models pull gemma3-270m --accept-licence --quiet
	EDGE_TEST_PROVE=1 EDGE_TEST_MODEL="$$($(BIN)/edge models show smollm2-135m --format gguf --path)" \
	EDGE_TEST_GEMMA="$$($(BIN)/edge models show gemma3-270m --format gguf --path)" \
		$(BIN)/python -m pytest -n 2 --dist worksteal -m prove $(ARGS)

test-models: model
	@$(BIN)/edge models pull gemma3-270m --accept-licence --quiet
	@$(BIN)/edge models pull all-minilm-l6-v2 --quiet
	@$(BIN)/edge models pull voice --quiet
	@$(BIN)/edge models pull whisper-base --quiet

coverage: install-dev model  ## Run all tests and say which lines none of them reaches; takes twice as long as `make test`.
	@$(MAKE) --no-print-directory test ARGS="--cov --cov-report=html --cov-report=term --cov-fail-under=85 $(ARGS)"

lint: install-dev  ## Style, types and import rules.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev  ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install-dev  ## Build the documentation site; open build/site/index.html.
	$(BIN)/python tools/build_docs.py

install: $(VENV)/.installed  ## Set up the runtime, the chat app and the server.

install-dev: $(VENV)/.installed-dev  ## Set up everything that contributors need.

install-ecosystem: $(VENV)/.installed-ecosystem  ## Set up programs of others that tests ask the server with (tests/ecosystem).

model: install
	@$(BIN)/edge models pull smollm2-135m --quiet

$(VENV)/bin/python:
	@sh tools/bootstrap.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt tools/build_llama.py
	@sh tools/bootstrap.sh $(PYTHON)
	$(BIN)/python tools/build_llama.py
	$(PIP) --editable '.[chat,server,structured,docs]'
	@$(PIP) --only-binary openvino --editable '.[openvino]' \
		|| echo "OpenVINO could not be installed here; llama.cpp runs the models, and nothing else is missing."
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@sh tools/bootstrap.sh $(PYTHON) tmux
	$(BIN)/python tools/install_torch.py constraints.txt
	$(PIP) --editable '.[dev,convert,ray]'
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-ecosystem: $(VENV)/.installed-dev tests/ecosystem/requirements.txt
	rm -rf $(VENV)/ecosystem
	$(BIN)/python -m venv $(VENV)/ecosystem
	$(VENV)/ecosystem/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/ecosystem/requirements.txt
	@touch $@

lock: install-dev  ## Resolve exact versions again into constraints.txt and tests/ecosystem/requirements.txt.
	$(PIP) uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --no-emit-index-url --quiet \
		--custom-compile-command "make lock" --output-file constraints.txt
	$(BIN)/uv pip compile tests/ecosystem/requirements.in --universal --python-version 3.10 --no-emit-index-url --quiet \
		--custom-compile-command "make lock" --output-file tests/ecosystem/requirements.txt

snapshots: install-dev  ## Accept the chat app's new look; read the differences first.
	$(BIN)/python -m pytest tests/snapshot --snapshot-update -p no:randomly

bench: install-dev model  ## Measure; results go to docs/.
	EDGE_TEST_MODEL="$$($(BIN)/edge models show smollm2-135m --format gguf --path)" $(BIN)/python benchmarks/decode_loop.py

clean:  ## Remove what make built here (models and caches in your home stay).
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .coverage htmlcov
