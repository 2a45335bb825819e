"""A CSV file goes into a session and a report comes out (docs/setup.md, docs/files.md#outputs).

    ANTHROPIC_API_KEY=... ANTHROPIC_AGENT_ID=... ANTHROPIC_ENVIRONMENT_ID=... \
        python examples/csv_in_report_out.py https://host/sales.csv

The environment's operator allows the host in SANDBOX_ALLOW_OUT, and has set OUTPUTS_TO: what the agent puts into
/workspace/outputs is there, below the session's id, as soon as the session rests.
"""

import os
import sys

import anthropic

PROMPT = "Sum up the column `amount` of sales.csv by `region`, and write the sums to outputs/report.csv."

client = anthropic.Anthropic()
session = client.beta.sessions.create(
    agent=os.environ["ANTHROPIC_AGENT_ID"],
    environment_id=os.environ["ANTHROPIC_ENVIRONMENT_ID"],
    metadata={"files": f"{sys.argv[1]}#target=sales.csv"},
    initial_events=[
        {"type": "user.message", "content": [{"type": "text", "text": sys.argv[2] if len(sys.argv) > 2 else PROMPT}]}
    ],
)
print(session.id)
