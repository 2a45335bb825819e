"""The worker: the program in a session's sandbox that serves one work item.

In reading order: `__main__` (the claim is taken and hidden), `program` (the order of the claim protocol),
`state_directory` and `identity` (what it keeps in the sandbox), `lock`, `claim_socket` and `claim_registry` (one worker
at a time, and claims passed on), `lease_acquisition` and `lease` (whose item is it), `sdk_worker` and
`lease_transport` (Anthropic's own `EnvironmentWorker`, kept from taking its own lost heartbeat for a lost lease).

Everything up to `sdk_worker` is standard library only: the line `ready` must not wait for an SDK that takes over a
second to import.
"""
