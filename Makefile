# Everything here sets itself up: the first target that runs makes .venv from the committed lock.
# Needs Python 3.11 or newer and make; no root, no Docker, no key.

.DEFAULT_GOAL := help
.PHONY: help tools tool-test setup-mcp demo demo-sandbox demo-race demo-two test test-busy lint up build prepare agent session serve webhook build-webhook webhook-sandbox webhook-sandbox-status webhook-sandbox-logs webhook-sandbox-rm poll tick fork repair ps show logs shell run cp ls cat stop interrupt archive rm keep suspend resume confirm alarms top cost ui doctor certify certify-proof drift upgrade-check image-check deploy-aws undeploy-aws deploy-gcp undeploy-gcp faults fuzz soak bench docs docs-reference docs-picture lock lock-check pin-images setup setup-dev

NAME ?= Managed Agent
PORT ?= 5051
UP ?=
TESTS ?=
DOCTOR ?=
CERTIFY ?=
IMAGE_CHECK ?=
FORK ?=
SESSION ?=
RUNS ?= 10000
CASES ?= 100000
SECONDS ?= 600
# Without a prompt a new session gets this one, and SESSION=... is only watched.
PROMPT ?= $(if $(SESSION)$(PROMPT_FILE),,create hello.txt with 'hi from the sandbox', then read it back)

# Settings of the caller's own Python must not reach ours; byte code is wanted.
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME
export PYTHON

# Texts go through the environment, raw: no quote, space or dollar sign of theirs reaches make or a shell.
session: export HANDS_PROMPT = $(if $(filter command line environment,$(origin PROMPT)),$(value PROMPT),$(PROMPT))
session: export HANDS_PROMPT_FILE = $(value PROMPT_FILE)
session: export HANDS_SESSION = $(value SESSION)
session: export HANDS_TITLE = $(value TITLE)
session: export HANDS_META = $(value META)
session: export HANDS_AGENT = $(value AGENT)
STEERED := show logs shell run stop interrupt archive rm keep suspend resume confirm
$(STEERED): export HANDS_SESSION = $(value SESSION)
# SESSION=$S with an S that is not set must not start a new session.
ifeq ($(origin SESSION):$(strip $(value SESSION)),command line:)
  ifneq ($(filter session fork $(STEERED),$(MAKECMDGOALS)),)
    $(error SESSION= is empty: give a session's id (make ps lists them)$(if $(filter session,$(MAKECMDGOALS)),; leave it out for a new one))
  endif
endif
cp ls cat: export HANDS_FROM = $(value FROM)
cp: export HANDS_TO = $(value TO)
run: export HANDS_COMMAND = $(value COMMAND)
confirm: export HANDS_DENY = $(value DENY)
serve webhook: export HANDS_HOST = $(if $(filter command,$(origin HOST)),$(value HOST))
fork: export HANDS_RACE_FILE = $(value FILE)
fork: export HANDS_SESSION = $(value SESSION)
tool-test: export HANDS_TOOL = $(if $(filter command environment,$(origin NAME)),$(value NAME))
tool-test: export HANDS_TOOL_INPUT = $(value INPUT)
agent: export HANDS_AGENT_NAME = $(value NAME)
prepare: export HANDS_ENVIRONMENT = $(value ENVIRONMENT)

PY := .venv/bin/python
HANDS := $(PY) -m infra.cli

help: ## this list
	@echo "Start here:  make demo   (everything on this machine, no key)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-22s %s\n", $$1, $$2 }' Makefile
	@echo "  Options: session PROMPT='...' PROMPT_FILE=path SESSION=sesn_... TITLE='...' META='a=1 b=2' AGENT=agent_... JSON=1; agent NAME='...'; serve PORT=5051 HOST=::1; OFFLINE=1 ignores your keys;"
	@echo "           up UP='--claude-port 8700 --tensorlake-port 8701' (UP=--help lists more) IMAGE_ROOT=/a/linux/root; PYTHON=/path/to/python3"

setup: ## make .venv (every other target does this by itself)
	@sh requirements/install.sh

setup-dev: ## the same with what tests and checks need
	@sh requirements/install.sh dev

setup-mcp: setup ## what SANDBOX_MCP needs on this machine
	@$(PY) -m pip install -qq --require-hashes --requirement requirements/mcp.lock

demo: setup ## a whole session on this machine, start to end, in seconds
	@$(HANDS) demo session

up: setup ## the offline platform, until ctrl-C
	@$(HANDS) up $(if $(IMAGE_ROOT),--image-root '$(IMAGE_ROOT)') $(UP)

demo-sandbox: setup ## the same with the functions in a sandbox that sleeps, wakes and sleeps again
	@$(HANDS) demo sandbox

demo-race: setup ## five fixes of a failing test race in copies of a session's sandbox; the best goes back
	@$(HANDS) demo race

demo-two: setup ## two environments under one copy of the functions: one in trouble, the other does not notice
	@$(HANDS) demo two

test: setup-dev ## the tests (TESTS=path for some of them)
	@$(PY) -m pytest $(if $(TESTS),$(TESTS),--reruns 1 -rR)

test-busy: setup-dev ## the tests beside four processes that only compute: none may depend on the machine's speed
	@$(PY) -m tests.support.busy $(TESTS)

lint: setup-dev ## style, types, import rules
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -c 'from importlinter.cli import lint_imports_command as run; run()'

build: setup ## build and register the image of the session sandboxes
	@$(HANDS) build

prepare: setup ## run the environment's set-up once, for new sessions to start from: ENVIRONMENT=env_... FRESH=1
	@$(HANDS) prepare $(if $(FRESH),--fresh)

tools: setup ## list the tools of your own (SANDBOX_TOOLS, SANDBOX_PRIVATE_TOOLS, SANDBOX_MCP)
	@$(HANDS) tools

tool-test: setup ## call one here, NAME=... INPUT='{"key": "value"}'; WATCH=1 again after each change
	@$(HANDS) tool-test $(if $(WATCH),--watch)

agent: setup ## create an agent, NAME="..."; prints its id; UPDATE=1 declares your tools on one that is there
	@$(HANDS) agent $(if $(UPDATE),--update)

session: setup ## start a session and watch it, PROMPT="..."; SESSION=... goes on with one
	@$(HANDS) session $(if $(JSON),--json)

serve: setup ## the functions on PORT (5051): webhook, tick, fork; UI=1 with the page
	@$(HANDS) serve --port $(PORT) $(if $(UI),--ui)

webhook: serve ## the same as serve

build-webhook: setup ## build and register the image of the server that lives in a sandbox
	@$(HANDS) build-webhook

webhook-sandbox: setup ## the functions in a sandbox that sleeps at no cost; run it again to apply changes
	@$(HANDS) webhook-sandbox

webhook-sandbox-status: setup ## how that sandbox fares
	@$(HANDS) webhook-sandbox-status

webhook-sandbox-logs: setup ## its server's log: FOLLOW=1 goes on, WAKE=1 wakes a sleeper
	@$(HANDS) webhook-sandbox-logs $(if $(FOLLOW),--follow) $(if $(WAKE),--wake)

webhook-sandbox-rm: setup ## end it; sessions go on
	@$(HANDS) webhook-sandbox-rm

poll: setup ## serve sessions from this machine by polling; needs no public address
	@$(HANDS) poll

tick: setup ## one pass of poll_tick
	@$(HANDS) tick

fork: setup ## race candidates, FILE=race.yaml or FORK="--session sesn_... --try 'a=make test'" (FORK=--help)
	@$(HANDS) fork $(value FORK)

ps: setup ## every session, what it does and what is wrong: ALL=1 JSON=1 WATCH=1
	@$(HANDS) ps $(if $(ALL),--all) $(if $(JSON),--json) $(if $(WATCH),--watch)

show: setup ## all that is known of SESSION=sesn_...
	@$(HANDS) show $(if $(JSON),--json)

logs: setup ## what SESSION's workers wrote: FOLLOW=1 goes on, WAKE=1 wakes a sleeper
	@$(HANDS) logs $(if $(FOLLOW),--follow) $(if $(WAKE),--wake)

shell: setup ## a terminal in SESSION's sandbox, as the agent's user
	@$(HANDS) shell

run: setup ## a command in SESSION's sandbox, as the agent's user: COMMAND='ls -l'
	@$(HANDS) run "$$HANDS_SESSION" -- sh -c "$$HANDS_COMMAND"

cp: setup ## copy files, FROM=sesn_...:out/report.csv TO=. or the other way round
	@$(HANDS) cp

ls: setup ## what a folder in a sandbox holds, FROM=sesn_...:/workspace
	@$(HANDS) ls $(if $(JSON),--json)

cat: setup ## print a file of a sandbox, FROM=sesn_...:out/report.csv
	@$(HANDS) cat

stop: setup ## stop SESSION's work; YES=1 does not ask
	@$(HANDS) stop $(if $(YES),--yes)

interrupt: setup ## end SESSION's turn
	@$(HANDS) interrupt

archive: setup ## archive SESSION: no message any more; YES=1 does not ask
	@$(HANDS) archive $(if $(YES),--yes)

rm: setup ## delete SESSION with its sandbox; YES=1 does not ask
	@$(HANDS) rm $(if $(YES),--yes)

keep: setup ## keep SESSION's sandbox for yourself; YES=1 does not ask
	@$(HANDS) keep $(if $(YES),--yes)

suspend: setup ## put SESSION's sandbox to sleep
	@$(HANDS) suspend

resume: setup ## wake SESSION's sandbox
	@$(HANDS) resume

confirm: setup ## answer SESSION's tool calls that wait for you: ALLOW=1, or DENY='reason'
	@$(HANDS) confirm $(if $(ALLOW),--allow)

alarms: setup ## what a tick would raise and repair now
	@$(HANDS) alarms $(if $(JSON),--json)

top: setup ## queues, sandboxes and problems, live: ONCE=1 JSON=1
	@$(HANDS) top $(if $(ONCE),--once) $(if $(JSON),--json)

ui: setup ## the same as a page: UI_PORT=5061 ACT=1
	@$(HANDS) ui $(if $(UI_PORT),--ui-port $(UI_PORT)) $(if $(ACT),--act)

cost: setup ## tokens, running time and list price: BY=session, environment or day
	@$(HANDS) cost $(if $(BY),--by $(BY)) $(if $(JSON),--json)

doctor: setup ## what is wrong and how to mend it, DOCTOR="--json --no-probe --url https://..."
	@$(HANDS) doctor $(DOCTOR)

certify: setup ## try what this project assumes of both services: YES=1, CERTIFY="--only queue --json"
	@$(HANDS) certify $(if $(YES),--yes) $(CERTIFY)

certify-proof: setup-dev ## break each assumption of the offline platform in turn: certify names that one alone
	@$(PY) -m pytest -n 4 --reruns 1 -rR tests/infra/cli/certify/proof.py

drift: setup-dev ## the tests with the newest and the oldest releases that fit, on each Python here (DRIFT="--python 3.13")
	@$(PY) -m tests.drift $(DRIFT)

upgrade-check: setup-dev ## release 0.1.0 and this version side by side, up and down, with old and new images
	@$(PY) -m tests.upgrade

image-check: setup-dev ## the images' Dockerfiles carried out without Docker, and used; needs root and mmdebstrap (docs/image.md)
	@$(PY) -m tests.image_check $(IMAGE_CHECK)

repair: setup ## repair what a tick reported as needs_interrupt; needs ANTHROPIC_API_KEY
	@$(HANDS) repair

deploy-aws: setup ## to AWS Lambda; DRY_RUN=1 prints the plan (docs/deploy/aws.md)
	@$(HANDS) deploy aws

undeploy-aws: setup ## remove what deploy-aws made
	@$(HANDS) undeploy aws

deploy-gcp: setup ## to Cloud Run functions; DRY_RUN=1 prints every gcloud call (docs/deploy/gcp.md)
	@$(HANDS) deploy gcp

undeploy-gcp: setup ## remove what deploy-gcp made
	@$(HANDS) undeploy gcp

faults: setup-dev ## random schedules and faults against both services in memory, RUNS=10000
	@$(PY) -m tests.faults.explorer --runs $(RUNS)

fuzz: setup-dev ## bad input for the three endpoints, CASES=100000
	@$(PY) -m tests.fuzz --cases $(CASES)

soak: setup-dev ## four copies, many sessions, 5 % faults, SECONDS=600; SOAK="--weather --users 20" for worse
	@$(PY) -m tests.faults.soak --seconds $(SECONDS) $(SOAK)

bench: setup-dev ## the benchmarks; prints a table
	@$(PY) -m tests.benchmarks

docs: setup-dev ## the site of docs/, in dist/docs; every warning and every link that leads nowhere is an error
	@$(PY) -m infra.cli.reference --check
	@$(PY) -m sphinx -q -W --keep-going -n -b html docs dist/docs
	@echo "dist/docs/index.html"

docs-reference: setup-dev ## generate docs/reference anew from the code
	@$(PY) -m infra.cli.reference

docs-picture: setup ## make docs/demo.svg anew from make demo, and the pictures of the page (needs chromium)
	@$(PY) -m infra.cli.reference.picture
	@$(PY) -m infra.cli.reference.page_pictures

lock: setup-dev ## compile requirements/*.lock anew from pyproject.toml
	@sh requirements/compile.sh

pin-images: setup ## write down which digests the tags of the base images stand for now
	@$(PY) -m infra.pin_images

lock-check: setup-dev ## are the locks in step with pyproject.toml? (offline)
	@$(PY) requirements/check.py
