# make chat: set up, fine-tune the demo model on data/conversations.json, talk to it.   make test: run the tests.
# Everything is installed into .venv; `make PYTHON=python3.12 chat` takes another interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: chat test test-slow check clean

chat: .venv/core
	$(BIN)/python train_chatbot.py --model demo --conversation_file data/conversations.json --save_path trained_model.pt --interactive

test: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

test-slow: .venv/test
	$(BIN)/python -m pytest -m slow

check: .venv/check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/pip:
	$(PYTHON) -m venv .venv
	touch $@

.venv/core: .venv/pip setup.cfg constraints.txt
	@echo "installing torch and a few small packages into .venv: a few minutes the first time"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[chat,serve]"
	touch $@

.venv/test .venv/check: .venv/%: .venv/pip setup.cfg constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[$*]"
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
