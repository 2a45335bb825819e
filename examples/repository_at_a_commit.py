"""A session about a repository at one of its branches, tags or commits: its metadata says which (docs/setup.md).

    ANTHROPIC_API_KEY=... ANTHROPIC_AGENT_ID=... ANTHROPIC_ENVIRONMENT_ID=... \
        python examples/repository_at_a_commit.py https://host/team/app v2 'what changed last?'

The environment's operator allows the host in SANDBOX_ALLOW_OUT. Nothing but the anthropic package is needed here.
"""

import os
import sys
import time

import anthropic


def is_over(session_id: str) -> bool:
    """A session that is idle may only wait for its tools."""
    idle = [event for event in client.beta.sessions.events.list(session_id) if event.type == "session.status_idle"]
    return bool(idle) and idle[-1].stop_reason.type != "requires_action"


repository, revision, prompt = sys.argv[1:4]
client = anthropic.Anthropic()
session = client.beta.sessions.create(
    agent=os.environ["ANTHROPIC_AGENT_ID"],
    environment_id=os.environ["ANTHROPIC_ENVIRONMENT_ID"],
    metadata={"repo": repository, "ref": revision},
    initial_events=[{"type": "user.message", "content": [{"type": "text", "text": prompt}]}],
)
print(session.id, flush=True)
while not is_over(session.id):
    time.sleep(1)
for event in client.beta.sessions.events.list(session.id, types=["agent.message"]):
    if event.type == "agent.message":
        print("".join(block.text for block in event.content if block.type == "text"))
