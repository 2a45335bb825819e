"""A credential for private repositories on GitHub: an installation token of a GitHub App, good for one repository and
for reading alone (docs/setup.md#private-repositories).

    pip install 'pyjwt[crypto]'
    OPERATOR_CODE=examples/github_app.py SETUP_CREDENTIALS=github_app:credential SANDBOX_ALLOW_OUT=github.com \
        GITHUB_APP_ID=123456 GITHUB_APP_KEY_FILE=/run/secrets/app.pem .venv/bin/hands serve
"""

import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import jwt

API = os.environ.get("GITHUB_API_URL", "https://api.github.com")
HOST = os.environ.get("GITHUB_HOST", "github.com")


def credential(repository: str) -> tuple[str, str] | None:
    """Called by the functions for each session that is about a repository. None: somebody else's, no credential."""
    parts = urlsplit(repository)
    if parts.netloc != HOST:
        return None
    owner, name = parts.path.strip("/").removesuffix(".git").split("/")
    key, now = Path(os.environ["GITHUB_APP_KEY_FILE"]).read_text(), int(time.time())
    claims = {"iat": now - 60, "exp": now + 300, "iss": os.environ["GITHUB_APP_ID"]}
    headers = {"authorization": f"Bearer {jwt.encode(claims, key, 'RS256')}", "accept": "application/vnd.github+json"}
    with httpx2.Client(base_url=API, headers=headers, timeout=10) as github:
        installation = github.get(f"/repos/{owner}/{name}/installation").raise_for_status().json()
        asked = {"repositories": [name], "permissions": {"contents": "read"}}
        answer = github.post(f"/app/installations/{installation['id']}/access_tokens", json=asked)
        return "x-access-token", answer.raise_for_status().json()["token"]
