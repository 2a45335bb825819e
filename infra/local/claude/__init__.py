"""The offline Claude side: agents, environments, sessions, events, work queue, webhooks, skills, memory and a scripted
brain.

Three layers, so that whoever looks for a rule finds it in the first:
- rules and state, synchronous and without any HTTP: `work`, `sessions`, `turns`, `events`, `agents`, `environments`,
  `skills`, `memories`, `attachments`, `credentials`, `inputs`, `webhooks`,
  with `clock`, `knobs`, `ids`, `records` and `errors` below them;
- the brain: `brain` (the seam), `scripted`, `grammar`, `scripts`;
- HTTP: `http` (what all routes share), `multipart`, `routes_*`, `admin`, `app`, `__main__`.

`platform` holds one of everything. State lives in memory and ends with the process.
"""
