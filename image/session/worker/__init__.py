"""The worker: the program in a session's sandbox that serves one work item.

In reading order: `start` (the claim is taken and hidden), `program` (the order of the claim protocol's step 3),
`identity`, `entry` (the lock, and claims passed on), `gate` and `lease` (whose item is it), `serving` and
`transport` (Anthropic's own `EnvironmentWorker`, kept from taking its own lost heartbeat for a lost lease).

Everything up to `serving` is standard library only: the line `ready` must not wait for an SDK that takes over a
second to import.
"""
