# Everything that is done to this repository: `make help` lists it.
#
#   MOUNT=/mnt/cloudai    where `make up` mounts
#   STATE=                where `make up` keeps the master's data (default: /var/lib/cloudai as root,
#                         ~/.local/state/cloudai otherwise)
#   PYTHON=python3        Python 3.11 or later to make .venv with
#   WORKERS=2             how many processes run the tests; most tests wait rather than compute
#   EXAMPLES=300 CALLS=20000 SEED=1
#                         how much `make test-conformance` does, and which
#   SECONDS=600           how long `make test-crowd` and `make soak` go on
#   MEMBERS=8             how many processes `make test-crowd` has
#   ARGS=                 options of `make bench` and `make test-crash`; ARGS=--help lists them

MOUNT ?= /mnt/cloudai
STATE ?=
EXAMPLES ?= 300
CALLS ?= 20000
SEED ?= 1
SECONDS ?= 600
MEMBERS ?= 8
PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
STATE_OPTION = $(if $(STATE),--state "$(STATE)")
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
PACKAGES := fuse3 libfuse3-dev pkg-config gcc libc6-dev python3-dev python3-venv util-linux rsync \
	podman runc busybox-static less nano sqlite3 vim-tiny zip
IMAGE_PACKAGES := mmdebstrap
BENCH_PACKAGES := sshfs rclone openssh-server fuse3 git
SOURCES := model master fusefs daemon tests examples
LOCK_COMMAND := pip-compile --all-build-deps --all-extras --allow-unsafe --generate-hashes \
	--no-emit-find-links --no-emit-index-url --no-emit-options --strip-extras \
	--output-file=requirements.txt pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help setup packages fuse-device up down check test test-crash test-conformance test-crowd soak test-image man bench format lock

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: packages .venv/.installed ## install what is needed, into Debian and .venv; a second time does nothing

packages:
	@missing=; \
	for package in $(PACKAGES); do \
		dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
		echo "installing$$missing"; \
		$(SUDO) apt-get update -q && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
	fi

# The stamp is newer than what it was made from, or pip runs again: it installs differences only.
.venv/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old: Python 3.11 or later is needed (make PYTHON=...)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

up: export MAKE_WORDS = $(MAKEOVERRIDES)
up: setup fuse-device ## start a master and a mount of it on this machine, with an example run
	@# findmnt: a mount whose daemon was killed is there too, although it answers nothing.
	@[ -e "$(MOUNT)" ] || findmnt --mountpoint "$(MOUNT)" >/dev/null || \
		mkdir -p "$(MOUNT)" 2>/dev/null || $(SUDO) install -d -o "$$(id -un)" "$(MOUNT)"
	@$(BIN)/cloudai up --mount "$(MOUNT)" $(STATE_OPTION)
	@sh examples/first_run.sh "$(MOUNT)"

# The kernel makes /dev/fuse root's alone, and udev everybody's; not every machine has udev.
# Where it cannot be helped, `cloudai up` says what is missing.
fuse-device:
	@[ -r /dev/fuse ] && [ -w /dev/fuse ] || \
		$(SUDO) sh -c '[ -e /dev/fuse ] || modprobe fuse; chmod 666 /dev/fuse' 2>/dev/null || true

down: ## wait for uploads, unmount, stop both; the data stays
	@$(BIN)/cloudai down $(STATE_OPTION)

check: setup ## format, lint, types, import contracts, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	PYTHON="$(CURDIR)/$(BIN)/python" sh proto/generate.sh "$$scratch" && \
	diff -r -x __pycache__ proto/generated "$$scratch" || \
		{ echo "proto/generated is not what proto/*.proto gives: sh proto/generate.sh" >&2; exit 1; }

test: setup ## every test, with real mounts
	@[ -r /dev/fuse ] && [ -w /dev/fuse ] || { \
		echo "/dev/fuse is missing or not ours: the tests mount real filesystems." >&2; \
		echo "Load the module (modprobe fuse), or start the container with --device /dev/fuse --cap-add SYS_ADMIN." >&2; \
		exit 1; }
	@# A folder of its own: what a killed run left mounted in pytest's usual one would fail this run.
	@scratch=$$(mktemp -d) && $(BIN)/pytest -n $(WORKERS) --dist worksteal --basetemp "$$scratch/tests"; status=$$?; \
	rm -rf --one-file-system "$$scratch"; exit $$status

test-crash: setup ## 200 rounds of kill -9, a minute's outage; some rounds: make test-crash ARGS="--rounds 20 --seed 7 --seconds 600"
	@PYTHONPATH=tests $(BIN)/python -m crash $(ARGS)
	@# ARGS means rounds, such as one that has failed, and no outage after it.
	@$(if $(ARGS),,scratch=$$(mktemp -d) && \
	CLOUDAI_TEST_OUTAGE_SECONDS=60 $(BIN)/pytest --timeout 0 --basetemp "$$scratch/tests" \
		tests/integration/test_network_faults.py::test_outage_during_a_training_run_costs_it_nothing; status=$$?; \
	rm -rf --one-file-system "$$scratch"; exit $$status)

test-conformance: setup ## any calls here and on tmpfs, for long: make test-conformance EXAMPLES=1000 CALLS=50000 SEED=7
	@scratch=$$(mktemp -d) && \
	CONFORMANCE_EXAMPLES=$(EXAMPLES) CONFORMANCE_CALLS=$(CALLS) CONFORMANCE_SEED=$(SEED) $(BIN)/pytest --timeout 0 \
		--hypothesis-seed $(SEED) --basetemp "$$scratch/tests" \
		tests/integration/test_any_calls.py tests/integration/test_one_file.py; status=$$?; \
	rm -rf --one-file-system "$$scratch"; exit $$status

test-image: setup ## build the image of the Containerfile on a small Debian, and run it
	@$(MAKE) --no-print-directory packages PACKAGES="$(IMAGE_PACKAGES)"
	@scratch=$$(mktemp -d) && \
	$(SUDO) mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$$scratch/base.tar" && \
	IMAGE_BASE="$$scratch/base.tar" $(BIN)/pytest --basetemp "$$scratch/tests" tests/integration/test_image.py; status=$$?; \
	rm -rf --one-file-system "$$scratch"; exit $$status

test-crowd: setup ## many processes in the same directories, for long: make test-crowd SECONDS=300 MEMBERS=16 SEED=7
	@scratch=$$(mktemp -d) && \
	CROWD_SECONDS=$(SECONDS) CROWD_MEMBERS=$(MEMBERS) CROWD_SEED=$(SEED) $(BIN)/pytest --timeout 0 \
		--basetemp "$$scratch/tests" tests/integration/test_many_processes.py; status=$$?; \
	rm -rf --one-file-system "$$scratch"; exit $$status

soak: setup ## what master and mounts hold while a crowd is at work; fails when it grows: make soak SECONDS=3600
	@PYTHONPATH=tests $(BIN)/python -m soak --seconds $(SECONDS)

man: setup ## the man pages of both programs and their commands, in build/man
	@$(BIN)/python docs/man_pages.py build/man

bench: setup ## compare with sshfs, rclone and local disk: make bench ARGS="--rounds 3 --workload sequential"
	@$(MAKE) --no-print-directory packages PACKAGES="$(BENCH_PACKAGES)"
	@PYTHONPATH=benchmarks $(BIN)/python -m cloudai_benchmarks $(ARGS)

format: setup ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup ## requirements.txt anew from pyproject.toml
	$(BIN)/$(LOCK_COMMAND)
