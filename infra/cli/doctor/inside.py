"""What runs in the probe sandbox, as the agent's user: who am I, what can I reach, does my daemon obey me?

    python -I -c <this file> '{"reach": {"name": "https://host"}, "daemon": 9501}'

One line of JSON comes back. Standard library only, since the image has little else; nothing is changed by it. A host
counts as reached over https only with its own certificate shown: a filter in between cannot fake that.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

SECONDS = 6.0
REACHED = "reached"


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Returns {"uid", "sudo", "reach": {name: REACHED or why not}, "daemon": {address: {what: answer}}}."""
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        reached = {name: pool.submit(reach, url) for name, url in request["reach"].items()}
        daemons = {address: pool.submit(daemon, address, request["daemon"]) for address in own_addresses()}
        return {
            "uid": os.getuid(),
            "sudo": may_become_root(),
            "reach": {name: future.result() for name, future in reached.items()},
            "daemon": {address: future.result() for address, future in daemons.items()},
        }


def reach(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        if parts.scheme == "https":
            context = ssl.create_default_context()
            with (
                socket.create_connection((host, parts.port or 443), SECONDS) as plain,
                context.wrap_socket(plain, server_hostname=host),
            ):
                return REACHED
        if parts.scheme == "tcp":
            with socket.create_connection((host, parts.port or 0), SECONDS):
                return REACHED
        connection = http.client.HTTPConnection(host, parts.port or 80, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            connection.getresponse()
            return REACHED
    except ssl.SSLCertVerificationError:
        return "something else answers for it: its certificate is not shown"
    except socket.gaierror:
        return "its name does not resolve"
    except TimeoutError:
        return "no answer"
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


def own_addresses() -> list[str]:
    """Loopback, and the address by which the sandbox knows itself."""
    addresses = ["127.0.0.1"]
    with contextlib.suppress(OSError):
        own = socket.gethostbyname(socket.gethostname())
        if not own.startswith("127."):
            addresses.append(own)
    return addresses


def daemon(address: str, port: int) -> dict[str, Any]:
    """Four questions without a token. Empty where nothing listens; of a file that only root may read, the status."""
    try:
        socket.create_connection((address, port), 2.0).close()
    except OSError:
        return {}
    order = json.dumps({"command": "id", "args": ["-u"], "user": "root"})
    said = {
        "health": ask(address, port, "GET", "/api/v1/health"),
        "processes": ask(address, port, "GET", "/api/v1/processes"),
        "file": ask(address, port, "GET", "/api/v1/files?path=%2Fetc%2Fshadow"),
        "run": ask(address, port, "POST", "/api/v1/processes/run", order),
    }
    return {what: status for what, (status, _) in said.items()} | {"root": '"line":"0"' in said["run"][1]}


def ask(address: str, port: int, method: str, path: str, body: str | None = None) -> tuple[int, str]:
    """The status, 0 where there was no answer, and the beginning of the answer without its spaces."""
    connection = http.client.HTTPConnection(address, port, timeout=SECONDS)
    try:
        with contextlib.closing(connection):
            connection.request(method, path, body, {"content-type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read(4096).decode(errors="replace").replace(" ", "")
    except (OSError, http.client.HTTPException):
        return 0, ""


def may_become_root() -> bool:
    """Whether sudo asks for no password."""
    if shutil.which("sudo") is None:
        return False
    try:
        done = subprocess.run(["sudo", "-n", "true"], capture_output=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
