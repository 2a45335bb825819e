"""A small web server: files from a table, and git repositories over git's own smart protocol."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.http_stub import StubHandler, stub_server


@dataclass
class Web:
    """`files` by path. `redirects` lead elsewhere. `repositories` holds bare ones. What `guard` returns for a request's
    path and authorization is the status that it is refused with. `asked` are the request lines so far."""

    repositories: Path
    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    put: dict[str, bytes] = field(default_factory=dict)
    guard: Callable[[str, str], int | None] = lambda path, authorization: None
    asked: list[str] = field(default_factory=list)
    hold: threading.Event | None = None
    """Where it is there, a file's second half waits for it."""
    hold_packs: threading.Event | None = None
    """The same for what git fetches."""
    cut: bool = False
    """That second half never comes: the connection is closed."""
    cuts: int = 0
    """The same for so many answers with a file."""

    def repository(self, name: str) -> str:
        return f"{self.url}/{name}"


def git(*arguments: str, cwd: Path) -> str:
    """As nobody in particular, at a fixed time: commits have the same names everywhere."""
    who = {f"GIT_{role}_{what}": "nobody@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    when = {f"GIT_{role}_DATE": "2026-01-02T03:04:05Z" for role in ("AUTHOR", "COMMITTER")}
    environ = {"PATH": os.environ["PATH"], "HOME": str(cwd), "GIT_CONFIG_NOSYSTEM": "1", **who, **when}
    done = subprocess.run(["git", *arguments], cwd=cwd, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def make_repository(folder: Path, name: str, more: Mapping[str, bytes] | None = None) -> tuple[str, str]:
    """`name`.git in `folder`: a commit tagged v1 and a later one on main, with a link, an executable and two folders,
    and with `more` files. Their two names."""
    work = folder / f"{name}-work"
    (work / "docs").mkdir(parents=True)
    (work / "src").mkdir()
    (work / "docs" / "guide.md").write_text("read me\n")
    (work / "src" / "tool.sh").write_text("#!/bin/sh\necho tool\n")
    (work / "src" / "tool.sh").chmod(0o755)
    (work / "link").symlink_to("docs/guide.md")
    (work / "version").write_text("1\n")
    for path, content in (more or {}).items():
        (work / path).write_bytes(content)
    git("init", "--quiet", "--initial-branch=main", cwd=work)
    git("add", ".", cwd=work)
    git("commit", "--quiet", "--message=one", cwd=work)
    git("tag", "v1", cwd=work)
    first = git("rev-parse", "HEAD", cwd=work)
    (work / "version").write_text("2\n")
    git("commit", "--quiet", "--all", "--message=two", cwd=work)
    bare = folder / f"{name}.git"
    git("clone", "--quiet", "--bare", str(work), str(bare), cwd=folder)
    git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=bare)
    git("config", "uploadpack.allowFilter", "true", cwd=bare)
    return first, git("rev-parse", "HEAD", cwd=work)


@contextlib.contextmanager
def web(repositories: Path) -> Iterator[Web]:
    table = Web(repositories)
    with stub_server(type("Handler", (_Handler,), {"web": table})) as table.url:
        try:
            yield table
        finally:
            for held in (table.hold, table.hold_packs):
                if held is not None:
                    held.set()


class _Handler(StubHandler):
    web: Web

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self.web.asked.append(f"PUT {self.path}")
        self.web.put[urlsplit(self.path).path] = self.body()
        self._send(200, b"")

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        self.web.asked.append(f"{self.command} {self.path}")
        refused = self.web.guard(parts.path, self.headers.get("authorization", ""))
        if refused is not None:
            self._send(refused, b"no")
        elif parts.path in self.web.redirects:
            self.send_response(302)
            self.send_header("location", self.web.redirects[parts.path])
            self.end_headers()
        elif parts.path in self.web.files:
            self._file(self.web.files[parts.path])
        elif ".git/" in parts.path or (self.web.repositories / f"{parts.path.split('/')[1]}.git").exists():
            self._git(parts.path, parts.query)
        else:
            self._send(404, b"none")

    def _file(self, body: bytes) -> None:
        """From a byte on, where that is asked for and the file is still the same."""
        tag = f'"{hashlib.sha256(body).hexdigest()}"'
        begins = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        headers = {"etag": tag}
        if begins is not None and self.headers.get("if-range") == tag:
            first = int(begins[1])
            headers["content-range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            self._send(206, body[first:], headers)
        else:
            self._send(200, body, headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        if status == 401:
            self.send_header("www-authenticate", 'Basic realm="here"')
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if status in (200, 206):
            self._halves(body, self.web.hold)
        else:
            self.wfile.write(body)

    def _halves(self, body: bytes, hold: threading.Event | None) -> None:
        half = len(body) // 2
        with contextlib.suppress(OSError):
            self.wfile.write(body[:half])
            if self.web.cut or self.web.cuts:
                self.web.cuts -= bool(self.web.cuts)
                self.close_connection = True
                return
            if hold is not None:
                self.wfile.flush()
                hold.wait(120)
            self.wfile.write(body[half:])

    def _git(self, path: str, query: str) -> None:
        first, _, rest = path.lstrip("/").partition("/")
        name = first if first.endswith(".git") else f"{first}.git"
        body = self.body()
        environ = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.web.repositories),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "PATH_INFO": f"/{name}/{rest}",
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
        }
        done = subprocess.run(["git", "http-backend"], env=environ, input=body, capture_output=True)
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        if path.endswith("upload-pack") and b"PACK" in answer:
            self._halves(answer, self.web.hold_packs)
        else:
            with contextlib.suppress(OSError):
                self.wfile.write(answer)
