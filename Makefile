# The local stack: docs/local-stack.md. ARGS goes to pytest: make test ARGS="-k feed -x"
# REPLICAS=1 gives each Postgres a streaming replica: make up REPLICAS=1
PYTHON ?= python3
export REPLICAS

run up down status logs test drill clean:
	@$(PYTHON) deploy/local/stack.py $@ $(if $(ARGS),-- $(ARGS))

.PHONY: run up down status logs test drill clean
