PYTHON ?= python3
STACK = $(PYTHON) deploy/local/stack.py

up:
	$(STACK) up
