# The local stack: docs/local-stack.md. ARGS goes to pytest: make test ARGS="-k feed -x"
PYTHON ?= python3

run up down status logs test clean:
	@$(PYTHON) deploy/local/stack.py $@ $(if $(ARGS),-- $(ARGS))

.PHONY: run up down status logs test clean
