# Everything here sets itself up: the first target that runs makes .venv from the committed lock.
# Needs Python 3.11 or newer and make; no root, no Docker, no key.

.DEFAULT_GOAL := help
.PHONY: help demo demo-sandbox demo-race test lint up build agent session serve webhook build-webhook webhook-sandbox webhook-sandbox-status webhook-sandbox-logs webhook-sandbox-rm poll tick fork repair doctor deploy-aws undeploy-aws deploy-gcp undeploy-gcp faults fuzz soak bench lock lock-check setup setup-dev

NAME ?= Managed Agent
PORT ?= 5051
UP ?=
TESTS ?=
DOCTOR ?=
FORK ?=
SESSION ?=
RUNS ?= 10000
CASES ?= 100000
SECONDS ?= 600
# Without a prompt a new session gets this one, and SESSION=... is only watched.
PROMPT ?= $(if $(SESSION),,create hello.txt with 'hi from the sandbox', then read it back)

# Settings of the caller's own Python must not reach ours; byte code is wanted.
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME
export PYTHON

# Texts go through the environment, raw: no quote, space or dollar sign of theirs reaches make or a shell.
session: export HANDS_PROMPT = $(if $(filter command line environment,$(origin PROMPT)),$(value PROMPT),$(PROMPT))
session: export HANDS_SESSION = $(value SESSION)
fork: export HANDS_RACE_FILE = $(value FILE)
fork: export HANDS_SESSION = $(value SESSION)
agent: export HANDS_AGENT_NAME = $(value NAME)

PY := .venv/bin/python
OPERATOR := $(PY) -m infra.cli

help: ## this list
	@echo "Start here:  make demo   (everything on this machine, no key)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-22s %s\n", $$1, $$2 }' Makefile
	@echo "  Options: session PROMPT='...' SESSION=sesn_...; agent NAME='...'; serve PORT=5051; OFFLINE=1 ignores your keys;"
	@echo "           up UP='--claude-port 8700 --tensorlake-port 8701' (UP=--help lists more); PYTHON=/path/to/python3"

setup: ## make .venv (every other target does this by itself)
	@sh requirements/install.sh

setup-dev: ## the same with what tests and checks need
	@sh requirements/install.sh dev

demo: setup ## a whole session on this machine, start to end, in seconds
	@$(PY) -m infra.cli.demos.session

up: setup ## the offline platform, until ctrl-C
	@$(PY) -m infra.local $(UP)

demo-sandbox: setup ## the same with the functions in a sandbox that sleeps, wakes and sleeps again
	@$(PY) -m infra.cli.demos.sandbox

demo-race: setup ## five fixes of a failing test race in copies of a session's sandbox; the best goes back
	@$(PY) -m infra.cli.demos.race

test: setup-dev ## the tests (TESTS=path for some of them)
	@$(PY) -m pytest $(TESTS)

lint: setup-dev ## style, types, import rules
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -c 'from importlinter.cli import lint_imports_command as run; run()'

build: setup ## build and register the image of the session sandboxes
	@$(OPERATOR) build

agent: setup ## create an agent, NAME="..."; prints its id
	@$(OPERATOR) agent

session: setup ## start a session and watch it, PROMPT="..."; SESSION=... goes on with one
	@$(OPERATOR) session

serve: setup ## the functions on PORT (5051): webhook, tick, fork
	@$(OPERATOR) serve --port $(PORT)

webhook: serve ## the same as serve

build-webhook: setup ## build and register the image of the server that lives in a sandbox
	@$(OPERATOR) build-webhook

webhook-sandbox: setup ## the functions in a sandbox that sleeps at no cost; run it again to apply changes
	@$(OPERATOR) webhook-sandbox

webhook-sandbox-status: setup ## how that sandbox fares
	@$(OPERATOR) webhook-sandbox-status

webhook-sandbox-logs: setup ## its server's log: FOLLOW=1 goes on, WAKE=1 wakes a sleeper
	@$(OPERATOR) webhook-sandbox-logs $(if $(FOLLOW),--follow) $(if $(WAKE),--wake)

webhook-sandbox-rm: setup ## end it; sessions go on
	@$(OPERATOR) webhook-sandbox-rm

poll: setup ## serve sessions from this machine by polling; needs no public address
	@$(OPERATOR) poll

tick: setup ## one pass of poll_tick
	@$(OPERATOR) tick

fork: setup ## race candidates, FILE=race.yaml or FORK="--session sesn_... --try 'a=make test'" (FORK=--help)
	@$(OPERATOR) fork $(value FORK)

doctor: setup ## what is wrong and how to mend it, DOCTOR="--json --no-probe --url https://..."
	@$(OPERATOR) doctor $(DOCTOR)

repair: setup ## repair what a tick reported as needs_interrupt; needs ANTHROPIC_API_KEY
	@$(OPERATOR) repair

deploy-aws: setup ## to AWS Lambda; DRY_RUN=1 prints the plan (infra/aws/README.md)
	@$(PY) -m infra.cli.deploy.aws deploy

undeploy-aws: setup ## remove what deploy-aws made
	@$(PY) -m infra.cli.deploy.aws undeploy

deploy-gcp: setup ## to Cloud Run functions; DRY_RUN=1 prints every gcloud call (infra/gcp/README.md)
	@$(PY) -m infra.cli.deploy.gcp deploy

undeploy-gcp: setup ## remove what deploy-gcp made
	@$(PY) -m infra.cli.deploy.gcp undeploy

faults: setup-dev ## random schedules and faults against both services in memory, RUNS=10000
	@$(PY) -m tests.faults.explorer --runs $(RUNS)

fuzz: setup-dev ## bad input for the three endpoints, CASES=100000
	@$(PY) -m tests.fuzz --cases $(CASES)

soak: setup-dev ## four copies, many sessions, 5 % faults, SECONDS=600
	@$(PY) -m tests.faults.soak --seconds $(SECONDS)

bench: setup-dev ## the benchmarks; prints a table
	@$(PY) -m tests.benchmarks

lock: setup-dev ## compile requirements/*.lock anew from pyproject.toml
	@sh requirements/compile.sh

lock-check: setup-dev ## are the locks in step with pyproject.toml? (offline)
	@$(PY) requirements/check.py
