# Every target makes what it needs the first time, and is quick afterwards.
#
#   make demo [ARGS=--json|--keep]   the main job on real photographs; ends by itself
#   make test [ARGS=…]               all tests, with the real pict-rs where `make pict-rs` has brought it
#   make fuzz [EXAMPLES=20000]       bodies that nobody has thought of, against the real pict-rs; some 10 minutes
#   make fuzz-classifier             EXAMPLES broken files of every format, other ones each time; some 3 minutes
#   make crash [KILLS=200]           gates die at every named point, on full disks too, and lose nothing; some 15 minutes
#   make outage                      500 uploads while the classifier is away, and what becomes of them
#   make bench [ARGS=--json]         what the gate costs an upload and a read
#   make bench-classifier [ARGS=…]   what the classifier adds to its models; some 6 minutes, on a GPU where there is one
#   make bench-cases [ARGS=--json]   what holding an upload costs beside the disk's fsync, lists of 100 000 cases; 1 minute
#   make bench-memory [ARGS=--json]  what a memory of two million hashes costs
#   make kills [KILLS=50]            a backfill killed -9 at random moments, over FILES=5000, and one by Ray; some 5 minutes
#   make bench-backfill [ARGS=…]     how fast a backfill is, what it holds in memory, how it begins again; some 6 minutes
#   make pict-rs                     the real pict-rs 0.5.25, outside the checkout, once a machine
#   make lint / make format          ruff and mypy / ruff
#   make clean                       back to a fresh clone

PYTHON ?= python3
PIP = -m pip --disable-pip-version-check --quiet
CONSTRAINTS = .ci/constraints.txt
# Compiled files are kept even where the machine's environment says otherwise: programs start sooner with them.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test outage kills fuzz fuzz-classifier crash
.PHONY: bench bench-classifier bench-cases bench-memory bench-backfill pict-rs lint format clean

demo: .venv-demo/made
	.venv-demo/bin/python -m tests.demo $(ARGS)

test: .venv/made
	.ci/packages.sh nginx:nginx-light age:age curl:curl openssl:openssl postgres:postgresql sshd:openssh-server
	.venv/bin/pytest $(ARGS)

EXAMPLES ?= 20000
fuzz: .venv/made
	.ci/packages.sh nginx:nginx-light
	GATE_FUZZ_EXAMPLES=$(EXAMPLES) .venv/bin/pytest tests/adversarial/test_any_body.py --timeout 0 $(ARGS)

fuzz-classifier: .venv/made
	GATE_FUZZ_EXAMPLES=$(EXAMPLES) .venv/bin/pytest -n0 -s tests/test_classifier_corpus.py --timeout 0 $(ARGS)

# Others at random moments with each SEED; without one they are new each time.
crash: KILLS ?= 200
crash: .venv/made
	.ci/packages.sh postgres:postgresql
	GATE_CRASH_KILLS=$(KILLS) GATE_CRASH_SEED=$${SEED:-$$(date +%s)} .venv/bin/pytest -n0 -s -m kills tests/test_crashes.py tests/test_full_disks.py --timeout 0 $(ARGS)

outage: .venv/made
	GATE_OUTAGE_UPLOADS=500 .venv/bin/pytest -n0 -s tests/test_outage.py --timeout 0 -k every_upload $(ARGS)

FILES ?= 5000
kills: KILLS ?= 50
kills: .venv/made
	GATE_KILLS=$(KILLS) GATE_KILL_FILES=$(FILES) .venv/bin/pytest -n0 -m kills tests/test_backfill_kills.py tests/test_backfill_ray.py --timeout 0 $(ARGS)

bench: .venv/made
	.ci/packages.sh nginx:nginx-light
	.venv/bin/python -m tests.bench $(ARGS)

bench-classifier: .venv/made
	.venv/bin/python -m tests.bench.classifier $(ARGS)

bench-cases: .venv/made
	.venv/bin/python -m tests.bench.cases $(ARGS)

bench-memory: .venv/made
	.venv/bin/python -m tests.bench.memory $(ARGS)

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
