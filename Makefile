# Every target makes what it needs the first time, and is quick afterwards.
#
#   make demo [ARGS=--json|--keep]   the main job on real photographs; ends by itself
#   make test [ARGS=…]               all tests, with the real pict-rs where `make pict-rs` has brought it
#   make fuzz [EXAMPLES=20000]       bodies that nobody has thought of, against the real pict-rs; some 10 minutes
#   make fuzz-classifier             EXAMPLES broken files of every format, other ones each time; some 3 minutes
#   make kills [KILLS=50]            a backfill killed -9 at random moments, over FILES=5000; some 4 minutes
#   make bench [ARGS=--json]         what the gate costs an upload and a read
#   make bench-classifier [ARGS=…]   what the classifier adds to its models; some 6 minutes, on a GPU where there is one
#   make bench-backfill [ARGS=…]     how fast a backfill is, what it holds in memory, how it begins again; some 6 minutes
#   make pict-rs                     the real pict-rs 0.5.25, outside the checkout, once a machine
#   make lint / make format          ruff and mypy / ruff
#   make clean                       back to a fresh clone

PYTHON ?= python3
PIP = -m pip --disable-pip-version-check --quiet
CONSTRAINTS = .ci/constraints.txt

.PHONY: demo test fuzz fuzz-classifier kills bench bench-classifier bench-backfill pict-rs lint format clean

demo: .venv-demo/made
	.venv-demo/bin/python -m tests.demo $(ARGS)

test: .venv/made
	.ci/packages.sh nginx:nginx-light age:age curl:curl openssl:openssl sshd:openssh-server
	.venv/bin/pytest $(ARGS)

EXAMPLES ?= 20000
fuzz: .venv/made
	.ci/packages.sh nginx:nginx-light
	GATE_FUZZ_EXAMPLES=$(EXAMPLES) .venv/bin/pytest tests/adversarial/test_any_body.py --timeout 0 $(ARGS)

fuzz-classifier: .venv/made
	GATE_FUZZ_EXAMPLES=$(EXAMPLES) .venv/bin/pytest -n0 -s tests/test_classifier_corpus.py --timeout 0 $(ARGS)

KILLS ?= 50
FILES ?= 5000
kills: .venv/made
	GATE_KILLS=$(KILLS) GATE_KILL_FILES=$(FILES) .venv/bin/pytest -n0 tests/test_backfill_kills.py --timeout 0 $(ARGS)

bench: .venv/made
	.ci/packages.sh nginx:nginx-light
	.venv/bin/python -m tests.bench $(ARGS)

bench-classifier: .venv/made
	.venv/bin/python -m tests.bench.classifier $(ARGS)

bench-backfill: .venv/made
	.venv/bin/python -m tests.bench.backfill $(ARGS)

pict-rs:
	tests/pictrs/install.sh

lint: .venv/made
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/made
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf .venv .venv-demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two environments: the demo's has no torch, as a gate's and a starter's have none.
.venv-demo/made: EXTRA = demo
.venv/made: EXTRA = dev
.venv-demo/made .venv/made: pyproject.toml $(CONSTRAINTS)
	@echo "making $(@D) (once)"
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) install -c $(CONSTRAINTS) -e '.[$(EXTRA)]'
	touch $@
