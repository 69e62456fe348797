# make serve [PORT= HOST= BUNDLE=]   the service, in an environment without torch
# make test [TESTS="pytest arguments"]   the whole suite with coverage, or what TESTS names
# make test-service [TESTS=]   the service's tests, in an environment without torch; the others skip
# make test-clients   unmodified clients of Triton and KServe against the service, in an environment of their own
# make test-batch   examples/ray_batch.py on a Ray cluster of this machine, in an environment of its own
# make lint   ruff (rules, format) and mypy --strict
# make weights NAME= DATA= BACKBONE=   train and export a bundle of trained_weights/ anew
# make bench-latency   latency per depth, start and memory of the real service
# make bench-serving [QUICK=1 DATA= TRACE=]   adaptive against one plan for all under rising load; QUICK: at most five minutes
# make bench-peers-serving [OUT=FILE ONLY=adaptive,ray,... DATA=]   the same beside LitServe, BentoML and Ray Serve, in pieces
# make bench-soak [MINUTES=5]   memory, places and threads under mixed requests, clients that leave and slow bodies
# make bench-picture   docs/fathom.png, the picture in the README, from the real service
# make bench-dashboard   docs/dashboard.png, from a real service and a real Prometheus (Debian's package)
# make bench-autoscale   simulated days under the autoscaler: adaptive depth against fixed plans, k8s's thresholds
# make bench-archive   examples/ray_batch.py against the bare engine
# make bench-pod   CPU and memory of a pod
# make bench-peers [CPU_PEERS="--only attention ..."]   our engines on a CPU beside PyTorch and transformers' Mask2Former
# make bench-gpu [GPU="--out FILE ..."]   kernel, models and service on an NVIDIA GPU, against bars (docs/backends.md)
# make prove-docker   build docker/'s image and run it without a Docker daemon (root; Debian's buildah and mmdebstrap)
# Each sets itself up in .venv; PYTHON= picks the interpreter (3.11 to 3.13) that a new environment is made with.

# Plain `=`: only the command line changes these, not a HOST or PORT that the shell happens to export.
PORT = 8000
HOST = 127.0.0.1
MINUTES = 5
BUNDLE = trained_weights/camvid-tiny
TESTS =
# Two processes: most tests use one core. A file stays in one of them, since its tests share what is costly. Files come
# in the order of conftest.py, where xdist would leave those of few tests for the end, which take the longest.
WORKERS = -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0
GPU =
CPU_PEERS =
ONLY =
DATA =
TRACE =
PYTHON = python3

SERVE = .venv/serve
TEST = .venv/test
TEST_SERVICE = .venv/test-service
CLIENTS = .venv/clients
BATCH = .venv/batch
PEERS = litserve bentoml ray

.DEFAULT_GOAL = help
.PHONY: help serve test test-service test-clients test-batch lint bench-latency bench-serving bench-dashboard bench-autoscale bench-pod bench-gpu bench-peers bench-picture prove-docker bench-peers-serving bench-soak bench-archive
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# Built when a package is installed; built again when its sources change. Without a compiler the service goes without.
NATIVE = service/native/libfathom.so
$(NATIVE): $(wildcard service/native/*.[ch])
	@if command -v $${CC:-cc} >/dev/null; then $(PYTHON) -m service.native.build; fi

serve: $(SERVE)/.ready $(NATIVE)
	@$(SERVE)/bin/python -m service --bundle "$(BUNDLE)" --host "$(HOST)" --port "$(PORT)"

# Coverage has a floor only where everything runs: a part of the suite cannot reach it. OpenVINO has a process of its own:
# one that had run it, with PyTorch and TensorRT beside it, died in the next file.
ALONE = tests/test_openvino.py
test: $(TEST)/.ready $(NATIVE)
ifneq ($(strip $(TESTS)),)
	$(TEST)/bin/python -m pytest $(TESTS)
else
	$(TEST)/bin/python -m pytest -q $(ALONE) --cov=service --cov-report=
	$(TEST)/bin/python -m pytest --ignore=$(ALONE) $(WORKERS) --cov=service --cov-append --cov-report=term-missing --cov-fail-under=95
endif

test-service: $(TEST_SERVICE)/.ready $(NATIVE)
	@! $(TEST_SERVICE)/bin/python -c 'import torch' 2>/dev/null || { \
	  echo "$(TEST_SERVICE) has torch: remove that folder, and it is made anew." >&2; exit 1; }
	$(TEST_SERVICE)/bin/python -m pytest $(TESTS)

test-clients: $(TEST_SERVICE)/.ready $(CLIENTS)/.ready
	REQUIRE_CLIENTS=1 $(TEST_SERVICE)/bin/python -m pytest $(WORKERS) tests/open_inference/test_clients.py tests/test_kserve_example.py

test-batch: $(BATCH)/.ready
	REQUIRE_RAY=1 $(BATCH)/bin/python -m pytest tests/test_ray_batch.py

lint: $(TEST)/.ready
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/mypy

# More than one environment: training needs torch, and the service must prove every day that it does not.
# Each has the newest pip: that which comes with Python may be years old, and takes twice as long to choose versions.
$(SERVE)/.ready: EXTRA = cpu
$(TEST)/.ready: EXTRA = test
$(TEST_SERVICE)/.ready: EXTRA = test-service
$(CLIENTS)/.ready: EXTRA = test-clients
$(BATCH)/.ready: EXTRA = batch,test-service
.venv/bench-%/.ready: EXTRA = $(notdir $(@D))
$(TEST)/.ready: NOTE = PyTorch is a large download.
$(SERVE)/.ready $(TEST)/.ready $(TEST_SERVICE)/.ready $(CLIENTS)/.ready $(BATCH)/.ready $(PEERS:%=.venv/bench-%/.ready): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "Fathom needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name a fitting one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make a virtual environment: its modules venv and ensurepip are missing." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up $(@D): once, and again when pyproject.toml changes. $(NOTE)"
	@$(PYTHON) -m venv --clear --upgrade-deps $(@D) >/dev/null
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRA)]'
	@touch $@

# Benchmarks and pictures of a real service process; each prints a table and ends in one JSON line.
bench-latency: $(TEST)/.ready
	$(TEST)/bin/python tests/bench/latency.py --bundle "$(BUNDLE)"

bench-serving: $(TEST_SERVICE)/.ready
	$(TEST_SERVICE)/bin/python tests/bench/serving.py --bundle "$(BUNDLE)" $(if $(QUICK),--quick) $(if $(DATA),--data "$(DATA)") $(if $(TRACE),--trace "$(TRACE)")

bench-peers-serving: OUT = .cache/peers-serving.jsonl
bench-peers-serving: $(TEST)/.ready $(PEERS:%=.venv/bench-%/.ready)
	$(TEST)/bin/python tests/bench/peers_serving.py --bundle "$(BUNDLE)" --out "$(OUT)" $(if $(ONLY),--only "$(ONLY)") $(if $(DATA),--data "$(DATA)") --figure "$(OUT).png"

bench-soak: $(TEST_SERVICE)/.ready
	$(TEST_SERVICE)/bin/python tests/bench/soak.py --bundle "$(BUNDLE)" --minutes "$(MINUTES)"

bench-dashboard: $(TEST)/.ready
	$(TEST)/bin/python tests/bench/dashboard_preview.py

bench-autoscale: $(TEST)/.ready
	$(TEST)/bin/python tests/bench/autoscale.py --bundle "$(BUNDLE)"

bench-archive: $(BATCH)/.ready $(NATIVE)
	$(BATCH)/bin/python tests/bench/archive.py --bundle "$(BUNDLE)"

bench-pod: $(TEST)/.ready
	$(TEST)/bin/python tests/bench/pod.py --bundle "$(BUNDLE)"

bench-gpu: $(TEST)/.ready
	$(TEST)/bin/python tests/bench/gpu.py --bundle "$(BUNDLE)" $(GPU)

bench-peers: $(TEST)/.ready $(NATIVE)
	$(TEST)/bin/python tests/bench/cpu_peers.py --bundle "$(BUNDLE)" $(CPU_PEERS)

prove-docker: $(TEST)/.ready
	$(TEST)/bin/python docker/prove.py

bench-picture: $(TEST)/.ready
	$(TEST)/bin/python tests/bench/picture.py

include trained_weights/recipes.mk
