# Two commands are all a newcomer needs: `make demo` and `make test`. Both set up .venv first, once.
# To use an environment that has torch and torchvision already: make demo ENV=/path/to/environment

ENV ?= .venv
PYTHON := $(ENV)/bin/python
READY := $(ENV)/.wsbcn_mm-ready

# Two threads of OpenMP that wait by spinning are up to 50 times slower on a busy machine with few cores.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo demo-full test test-runs test-library lint docs docs-serve benchmark stress clean

demo: $(READY)
	$(PYTHON) -m projects.micro_batch_demo.run

demo-full: $(READY)
	$(PYTHON) -m projects.micro_batch_demo.run --full

test: lint
	$(MAKE) -j2 test-runs test-library

# The two halves of the tests: what starts tools and studies, and the rest.
test-runs: $(READY)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/tools tests/projects

test-library: $(READY)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --ignore=tests/tools --ignore=tests/projects

lint: $(READY) docs
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

# mkdocs.yml is strict: a dead link or a reference to nothing ends the build with an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet

docs-serve: $(READY)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs serve --no-strict

benchmark: $(READY)
	$(PYTHON) -m projects.operator_benchmark.run

stress: $(READY)
	$(PYTHON) -m tests.stress.kill_and_resume
	$(PYTHON) -m tests.stress.first_batch

$(READY): pyproject.toml constraints.txt tools/set_up.py
	test -x $(PYTHON) || python3 -m venv $(ENV)
	$(PYTHON) tools/set_up.py
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build site *.egg-info work_dirs data/micro_batch_demo
