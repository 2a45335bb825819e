"""A managed process: what its supervisor was told to do about its ends, and what it has done
(docs/wire/tensorlake.md#71-start_process).

Where the contract is silent: a process that its health check finds unhealthy is ended as `kill` ends it and restarted
as after a failure, whatever it exits with; the pause doubles with each restart and starts anew after a run that
outlived the longest pause; `max_restarts` counts all of them.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False  # see wire.py
if TYPE_CHECKING:
    from .wire import Json

RUNNING, BACKING_OFF, STOPPED = "running", "backing_off", "stopped"
DISABLED, STARTING, HEALTHY, UNHEALTHY = "disabled", "starting", "healthy", "unhealthy"


class Managed:
    """Guarded by the table's condition. `asked`: id, name or None, `restart` and `health_check` or None, complete."""

    def __init__(self, asked: Json) -> None:
        self.id: str = asked["id"]
        self.name: str | None = asked["name"]
        self.restart: Json = asked["restart"]
        self.check: Json | None = asked["health_check"]
        self.restart_count = 0
        self.last_exit: Json | None = None
        self.last_error: str | None = None
        self.kept = False
        """Whether a thread watches over it."""
        self._pauses = 0
        self.begin()

    def begin(self) -> None:
        """A run begins."""
        self.status = RUNNING
        self.stopping = False
        self.ailing = False
        """Being ended because its health check failed."""
        self.due = 0.0
        self.next_restart_at: int | None = None
        self.health = STARTING if self.check else DISABLED
        self.failures = 0
        self.began = time.monotonic()
        self.next_probe = self.began + (self.check["initial_delay_ms"] / 1000 if self.check else 0.0)

    @property
    def watched(self) -> bool:
        return self.restart["policy"] != "never" or self.check is not None

    def ended(self, exit_code: int | None, signal: int | None, at: int) -> None:
        """A run has ended: the next one is due, or there is none."""
        self.last_exit = {"exit_code": exit_code, "signal": signal, "oom_killed": False, "ended_at": at}
        if time.monotonic() - self.began >= self.restart["max_backoff_ms"] / 1000:
            self._pauses = 0
        failed = exit_code != 0 or self.ailing
        self._decide(failed)

    def could_not_begin(self, problem: str) -> None:
        self.last_error = problem
        self._decide(failed=True)

    def _decide(self, failed: bool) -> None:
        policy, most = self.restart["policy"], self.restart["max_restarts"]
        wanted = policy == "always" or (policy == "on_failure" and failed)
        if self.stopping or not wanted or (most is not None and self.restart_count >= most):
            self.status = STOPPED
            self.next_restart_at = None
            return
        pause_ms = min(self.restart["initial_backoff_ms"] * 2**self._pauses, self.restart["max_backoff_ms"])
        self._pauses = min(self._pauses + 1, 30)
        self.status = BACKING_OFF
        self.due = time.monotonic() + pause_ms / 1000
        self.next_restart_at = time.time_ns() // 1_000_000 + pause_ms

    def probed(self, problem: str | None) -> None:
        """A health check was made: None, or what was wrong."""
        if self.check is None:
            return
        self.next_probe = time.monotonic() + self.check["interval_ms"] / 1000
        if problem is None:
            self.health, self.failures = HEALTHY, 0
            return
        self.failures += 1
        self.last_error = f"health check: {problem}"
        if self.failures >= self.check["failure_threshold"]:
            self.health = UNHEALTHY

    def info(self) -> Json:
        return {
            "id": self.id,
            "name": self.name,
            "status": self.status,
            "restart_count": self.restart_count,
            "restart": self.restart,
            "health_check": self.check,
            "health_status": self.health,
            "consecutive_health_failures": self.failures,
            "last_exit": self.last_exit,
            "last_error": self.last_error,
            "next_restart_at": self.next_restart_at,
        }


def probe(check: Json) -> str | None:
    """One health check on this sandbox's loopback; None, or what was wrong. HTTP 200 to 399 is healthy."""
    import socket  # see wire.py

    seconds = check["timeout_ms"] / 1000
    end = time.monotonic() + seconds
    try:
        with socket.create_connection(("127.0.0.1", check["port"]), timeout=seconds) as connection:
            if check["type"] == "tcp":
                return None
            request = f"GET {check['path']} HTTP/1.1\r\nHost: 127.0.0.1:{check['port']}\r\nConnection: close\r\n\r\n"
            connection.sendall(request.encode())
            head = b""
            while b"\r\n" not in head and len(head) < 4096:
                connection.settimeout(max(end - time.monotonic(), 0.001))
                part = connection.recv(4096)
                if not part:
                    break
                head += part
    except TimeoutError:
        return f"no answer within {check['timeout_ms']} ms"
    except OSError as error:
        return error.strerror or type(error).__name__
    fields = head.split(b"\r\n")[0].split()
    if len(fields) < 2 or not fields[0].startswith(b"HTTP/") or not fields[1].isdigit():
        return "the answer is not HTTP"
    status = int(fields[1])
    return None if 200 <= status < 400 else f"status {status}"
