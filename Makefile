# Everything a newcomer types. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# else every process of the tests would compile anew what it imports
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test test-fast test-long test-slow test-times test-search lint types chaos mutants learn baselines floors table latex bench bench-gpu bench-more clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@# what is imported is compiled then, once; pip would compile all that lies there, on one core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	@touch $(STAMP)

run: $(STAMP) ## build .venv, then train and evaluate OCGAN on the bundled digits, offline (under 2 minutes after installing)
	$(BIN)/python -m noveltylab method=ocgan data=digits

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup
test: $(STAMP) ## build .venv, then run the tests of less than a second each; make test LONG=1 runs the long ones too
	$(PYTEST) -m "not slow$(if $(LONG),, and not long)"

test-long: $(STAMP) ## the other tests that must pass: whole runs, killed runs, every method
	$(PYTEST) -m "long and not slow"

test-times: $(STAMP) ## run both on idle cores, and write which tests are long into tests/long.txt
	$(PYTEST) -m "not slow" --write-long

# what most changes touch; what of it takes long is left out
FAST := tests/test_layers.py tests/scoring tests/nets tests/report \
	$(addprefix tests/data/test_,protocols.py preprocess.py readers.py) \
	$(addprefix tests/results/test_,files.py scores.py archive.py schema.py) \
	$(addprefix tests/methods/test_,ocgan.py ca_entropy.py oled.py nda.py classical.py)
LEFT_OUT := tests/scoring/test_conformal.py tests/scoring/test_folds.py tests/scoring/test_drift.py \
	tests/nets/cpu/test_layers.py tests/nets/test_backbone.py tests/report/test_stats.py
test-fast: $(STAMP) ## a thousand quick tests for while one writes: equations, metrics, readers, the report, the layout of the code
	$(PYTEST) -m "not slow" $(FAST) $(addprefix --ignore=,$(LEFT_OUT))

test-slow: $(STAMP) ## the tests that take minutes or need real data in $NOVELTYLAB_DATA
	$(BIN)/python -m pytest -m slow

test-search: $(STAMP) ## the property tests with examples that no run has seen
	$(PYTEST) --hypothesis-profile=search -m "not slow" $$(grep -rl "@given(" tests)

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy -n 2

chaos: $(STAMP) ## kill 200 runs at random moments and compare what they end with (an hour)
	$(BIN)/python -m tests.chaos 200

mutants: $(STAMP) ## change the methods in one place at a time and list the changes that their tests miss: make mutants [M=ocgan] (a minute a method on two idle cores)
	$(BIN)/python -m tests.mutants $(M)

learn: $(STAMP) ## train each method on three MNIST digits ($NOVELTYLAB_DATA), at most 8 minutes of a core each
	@$(MAKE) --no-print-directory table T=learn/mnist

baselines: $(STAMP) ## the classical baselines on MNIST and Fashion-MNIST, P1 and P2, all classes ($NOVELTYLAB_DATA; two hours of a core)
	$(BIN)/python -m noveltylab experiment=classical/baselines $(ARGS)
	$(BIN)/python -m experiments.keep outputs/classical classical

floors: $(STAMP) ## PCA, nearest neighbours, KDE and OCSVM on the other sets ($NOVELTYLAB_DATA; an hour of a core; ARGS="row=dcase inlier=0,7" for a part)
	$(BIN)/python -m noveltylab experiment=classical/gcn
	$(BIN)/python -m noveltylab experiment=classical/floors $(ARGS)
	$(BIN)/python -m experiments.keep outputs/classical_gcn classical_gcn
	$(BIN)/python -m experiments.keep outputs/classical classical --shortened

# where the table's runs go
MADE = $(or $(patsubst output=%,%,$(filter output=%,$(ARGS))),outputs/$(T))
table: $(STAMP) ## run a paper's table or a study, keep its runs, write its page; a trial is only shown: make table T=ocgan/table2_mnist [ARGS="more options"]
	@test -n "$(T)" || { echo "error: which table? make table T=ocgan/table2_mnist; --help lists them" >&2; exit 2; }
	@$(BIN)/python -m noveltylab experiment=$(T) $(ARGS); status=$$?; test $$status -le 1 || exit $$status; \
	$(BIN)/python -m experiments.keep $(MADE) $(T) && exit $$status

latex: $(STAMP) ## compile the tables of the kept results (or R=outputs) to <report>/report.pdf; needs pdflatex
	$(BIN)/python -m noveltylab report $(or $(R),experiments/results) --output outputs/latex
	cd outputs/latex && pdflatex -interaction=nonstopmode -halt-on-error report.tex > pdflatex.txt || { tail -20 pdflatex.txt; exit 1; }
	@! grep -n Overfull outputs/latex/report.log && echo outputs/latex/report.pdf

bench: $(STAMP) ## the four methods side by side with bare PyTorch and plain Lightning, appended to benchmarks/RESULTS.md (9 minutes)
	$(BIN)/python -m benchmarks.suite

bench-gpu: $(STAMP) ## the same on a CUDA device, noveltylab with recorded graphs
	$(BIN)/python -m benchmarks.suite --device cuda

bench-more: $(STAMP) ## loader, framework overhead, readers, growth, packing
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.readers
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.parallel --stacked
	$(BIN)/python -m benchmarks.scoring

clean: ## remove the environment and caches, never outputs/
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
