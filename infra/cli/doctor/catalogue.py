"""Every code that doctor may print. A code keeps its meaning indefinitely; one that is given up is never used again.

docs/reference/doctor.md is generated from it (tests/infra/cli/doctor/test_catalogue.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """symptom: what is wrong, where something is. cause: why it is so, or why it matters. fix: what to do."""

    symptom: str
    cause: str
    fix: str


GROUPS: Final[Mapping[str, str]] = {
    "0": "Doctor itself",
    "1": "Settings",
    "2": "Services",
    "3": "Work queue",
    "4": "Image",
    "5": "Webhook",
    "6": "Sandboxes",
    "7": "Inside a sandbox",
}
"""By the first digit of a code."""

CATALOGUE: Final[Mapping[str, CatalogueEntry]] = {
    "HANDS001": CatalogueEntry(
        "a check broke or ran out of time",
        "a service is slow or down, or doctor has a bug",
        "run it again; if it stays so, look at the other findings first",
    ),
    "HANDS002": CatalogueEntry(
        "something was not looked at",
        "it needs what is missing, or was left out on request",
        "set what the finding names and run doctor again",
    ),
    "HANDS100": CatalogueEntry(
        "nothing is configured",
        "no keys are set and no offline platform runs here",
        "`make up` in another terminal, or fill in `.env` and `.env.local`",
    ),
    "HANDS101": CatalogueEntry(
        "a setting is missing or malformed",
        "no server starts with it",
        "correct the variable that is named; the settings table says what it should be",
    ),
    "HANDS102": CatalogueEntry(
        "a key is in the wrong variable",
        "keys were swapped or pasted twice; the wrong service would be sent a secret",
        "put each key where it belongs, and replace one that somebody else has seen",
    ),
    "HANDS103": CatalogueEntry(
        "`TENSORLAKE_API_URL` is a trap",
        "the SDK sends the key to the real cloud for every host that it does not know",
        "leave it out, or use `http://127.0.0.1:...` or a host that begins with `api.`",
    ),
    "HANDS104": CatalogueEntry(
        "a variable leads the SDKs elsewhere",
        "they read it from the environment behind the settings' back, proxies for this machine included",
        "unset it, or set `NO_PROXY=127.0.0.1,localhost` beside a proxy",
    ),
    "HANDS105": CatalogueEntry(
        "no webhook signing key",
        "webhooks are answered 503; `make poll` needs none",
        "create the webhook in the Console and set `ANTHROPIC_WEBHOOK_SIGNING_KEY`",
    ),
    "HANDS106": CatalogueEntry(
        "`FUNCTIONS_TOKEN` is missing or short",
        "without it `/poll_tick` and `/fork_best_of_n` are answered 503; a short one can be guessed",
        "set it to a long random text, such as `openssl rand -hex 32` gives",
    ),
    "HANDS107": CatalogueEntry(
        "a name in `.env` is no setting",
        "nothing reads it, so what it says is not so: a slip of the pen, or another program's",
        "write the name as the settings table has it, or take the line out",
    ),
    "HANDS201": CatalogueEntry(
        "the Claude API does not answer, or refuses the environment key",
        "no network, a revoked key, or a key of another service",
        "refused: generate a new key on the environment's page in the Console; no answer: see what the finding names",
    ),
    "HANDS202": CatalogueEntry(
        "the environment cannot be served",
        "it is not self-hosted, is archived, does not exist, or the key is another's",
        "use id and key of one environment with hosting type Self-hosted",
    ),
    "HANDS203": CatalogueEntry(
        "Tensorlake does not answer, or refuses the key",
        "no network, a revoked key, or something on the way that reads TLS: the SDK trusts public authorities alone",
        "refused: create a key in the Tensorlake console, `TENSORLAKE_API_KEY`; no answer: see what the finding names; "
        "have Tensorlake exempted from what reads TLS",
    ),
    "HANDS204": CatalogueEntry(
        "this machine's clock is off",
        "webhooks older or newer than five minutes are refused, and a race's sandboxes may be ended early",
        "switch time synchronisation on (`timedatectl set-ntp true`)",
    ),
    "HANDS205": CatalogueEntry(
        "the API key is refused",
        "it is revoked or of another organisation; `make session` and `make agent` need it, servers do not",
        "create one in the Console: `ANTHROPIC_API_KEY` in `.env.local`",
    ),
    "HANDS206": CatalogueEntry(
        "the agent of new sessions is not there",
        "it was archived, or belongs to another workspace than the API key",
        "`make agent`, and put the id that it prints into `.env.local`",
    ),
    "HANDS207": CatalogueEntry(
        "an agent's custom tool is none of yours",
        "neither SANDBOX_TOOLS, SANDBOX_PRIVATE_TOOLS nor SANDBOX_MCP has it, so no sandbox serves it; a session that "
        "calls it waits until a program of yours sends its result",
        "set those as they were for `make agent` and `make build`, or let your program answer; `make session` says "
        "which call a session waits for",
    ),
    "HANDS208": CatalogueEntry(
        "what the code assumes of the services was not tried with this code",
        "facts of docs/wire that no live service has shown may be wrong, and what depends on them too",
        "`make certify`: cents and ten minutes; commit what it writes into docs/certified",
    ),
    "HANDS301": CatalogueEntry(
        "work waits and nobody takes it",
        "no copy of the functions polls this environment",
        "start `make serve` or `make poll`; behind a webhook look at its deliveries in the Console",
    ),
    "HANDS302": CatalogueEntry(
        "an item is stranded",
        "it was acked and its worker never beat; its session waits indefinitely",
        "`make tick`; what that reports as `needs_interrupt` is for `make repair`",
    ),
    "HANDS303": CatalogueEntry(
        "somebody else polls this queue",
        "another worker host, or an old deployment, has this environment's key and takes its sessions; "
        "one that takes and never beats shows as `HANDS302`",
        "stop it, or revoke its key in the Console",
    ),
    "HANDS304": CatalogueEntry(
        "no schedule seems to tick",
        "dropped webhooks and re-queued items are found by `poll_tick` alone",
        "call `POST /poll_tick` once a minute, or run `make serve` or `make poll`",
    ),
    "HANDS305": CatalogueEntry(
        "work is polled and waits all the same",
        "each claim of the item fails: no room for a sandbox, a worker that does not come up, or the service issues "
        "no work secret with its items, and without one no session is served",
        "`make tick` and the log of the functions give the item's reason; where it is the secret, ask Anthropic to "
        "switch it on for the organisation",
    ),
    "HANDS401": CatalogueEntry(
        "the image is not registered",
        "it was not built, or for another Tensorlake project",
        "`make build` with the `TENSORLAKE_API_KEY` that the server uses",
    ),
    "HANDS402": CatalogueEntry(
        "the worker's SDK is not the locked one",
        "the image was built from another version of this project",
        "`make build`",
    ),
    "HANDS403": CatalogueEntry(
        "the image lacks this version's worker",
        "it was built from another version; the worker is written into each new sandbox, which costs time",
        "`make build`",
    ),
    "HANDS404": CatalogueEntry(
        "the pool cannot be used",
        "there is none, or its sandboxes would not be what the environment says, egress included; each new session's "
        "sandbox is created instead",
        "change the pool or the environment's settings, or leave `SANDBOX_POOL` out (docs/pool.md)",
    ),
    "HANDS501": CatalogueEntry(
        "the webhook's URL is not public https",
        "Anthropic disables an endpoint whose address is not public, and sends to no plain http",
        "put a public https address in front of the server and give that as `WEBHOOK_URL`",
    ),
    "HANDS502": CatalogueEntry(
        "the webhook's URL does not answer, or its certificate is not valid",
        "the server is down, the address is another's, or the certificate is expired or incomplete",
        "open the URL's `/healthz` from outside; renew the certificate with its whole chain",
    ),
    "HANDS503": CatalogueEntry(
        "a signed webhook is not answered 200",
        "the server has another signing key or none, or the path is not the function's; a redirect disables it",
        "give the server the key of this endpoint, and use the path `/` or `/on_run_started`",
    ),
    "HANDS504": CatalogueEntry(
        "a wrongly signed webhook is accepted",
        "what answers there checks no signature: anybody could wake it",
        "point the webhook straight at `on_run_started`; stop what answers there now",
    ),
    "HANDS601": CatalogueEntry(
        "a probe sandbox cannot be made",
        "the service refuses it or is out of capacity; sessions meet the same",
        "the finding has the service's words; look at the project in the Tensorlake console",
    ),
    "HANDS602": CatalogueEntry(
        "the sandbox quota is used up",
        "so many sandboxes run at once as the plan allows; sessions wait until one sleeps",
        "end what is not needed, shorten `SANDBOX_TIMEOUT_SECONDS`, or take a larger plan",
    ),
    "HANDS603": CatalogueEntry(
        "a worker does not come up in the sandbox",
        "the image lacks Python, the locked packages or the user, or the API is out of its reach",
        "`make build`; the finding has the worker's own last words",
    ),
    "HANDS604": CatalogueEntry(
        "sandbox or worker start slowly",
        "near the bound a claim is given back, and its session waits longer",
        "a smaller image, or larger `BIND_SECONDS`, `HANDOVER_SECONDS` and `RECLAIM_SECONDS`",
    ),
    "HANDS605": CatalogueEntry(
        "the probe sandbox could not be ended",
        "the service did not answer; its name says from when on a tick ends it",
        "`make tick` in a few minutes",
    ),
    "HANDS606": CatalogueEntry(
        "sandboxes or snapshots are left over",
        "their race, session or start is over and no tick has cleaned up after it",
        "`make tick`; if it stays so, see its report",
    ),
    "HANDS607": CatalogueEntry(
        "snapshots of a session's own sandbox",
        "a person took them, or a race that was killed; nothing tells which, so no tick deletes them",
        "delete those that nobody needs, in the service's console or with its command line",
    ),
    "HANDS608": CatalogueEntry(
        "sandboxes of these environments have another prefix",
        "SANDBOX_PREFIX was changed, or two deployments serve one environment under two prefixes: a session gets a "
        "second sandbox, and no tick cleans the first one up",
        "set SANDBOX_PREFIX back until they have ended, or end them yourself",
    ),
    "HANDS609": CatalogueEntry(
        "a prepared start is out of date",
        "the set-up, the image's name or the version here has changed since, or it is older than "
        "`SETUP_PREPARED_SECONDS`: sessions start without it, or with less and less of what they need",
        "`make prepare`, by a schedule and more often than `SETUP_PREPARED_SECONDS`, or `SETUP_PREPARED_BY_TICKS=true`",
    ),
    "HANDS701": CatalogueEntry(
        "a sandbox cannot reach what it should",
        "the egress list does not have the host, or the network does not let it through",
        "add the host to `SANDBOX_ALLOW_OUT`, the Claude API's first of all",
    ),
    "HANDS702": CatalogueEntry(
        "a sandbox reaches what it should not",
        "the egress list is not enforced, or is open",
        "name hosts in `SANDBOX_ALLOW_OUT`; if there are some, report it to the service",
    ),
    "HANDS703": CatalogueEntry(
        "an agent reaches its sandbox's own daemon",
        "the daemon answers inside without a token, so the agent may be root in its sandbox",
        "treat all of a sandbox as the agent's: put nothing in it that the agent may not have",
    ),
    "HANDS704": CatalogueEntry(
        "an agent's tools run as root",
        "`SANDBOX_USER` is root in the image, or may become it",
        "leave `SANDBOX_USER` at `agent` and `make build`",
    ),
    "HANDS705": CatalogueEntry(
        "no worker may start as root",
        "the service refuses a process of root's, so the interpreter's mode alone hides a claim from its agent",
        "`make build`: in an image of this version the interpreter may be run and not read by `SANDBOX_USER`",
    ),
}


def group_of(code: str) -> str:
    return GROUPS[code.removeprefix("HANDS")[0]]
