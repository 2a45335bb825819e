"""`make pin-images`: asks the registries what the tags of the base images stand for now, and writes the digests down.

Two places name a base: `ARG BASE` of the Dockerfile, and the base of the sandboxes' images (SANDBOX_IMAGE_BASE), whose
digest goes into requirements/base-images.lock. Running it again moves both. A digest is worked out from what the
registry answered, and never taken from its word alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from image.session.base_images import LOCK
from image.session.definition import DEFAULT_BASE
from shared.errors import HandsError
from shared.setting_kinds import LOOPBACK

ROOT: Final = Path(__file__).resolve().parents[1]
_ARG: Final = re.compile(r"^ARG BASE=(\S+)$", re.MULTILINE)
_REFERENCE: Final = re.compile(
    r"(?:(?P<host>[^/@]*[.:][^/@]*|localhost)/)?(?P<name>[a-z0-9][a-z0-9._/-]*):(?P<tag>[\w.-]+)"
)
_HUB: Final = "registry-1.docker.io"  # what a reference without a host means
_KINDS: Final = (
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
)
_SECONDS: Final = 30.0
_MOST: Final = 4 * 1024 * 1024  # bytes of a manifest: what registries take


class NotPinned(HandsError):
    """The text says which image, and why."""


def pin(environ: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """Writes both digests, and returns the references by digest. Raises NotPinned; then nothing is written."""
    dockerfile, lock = root / "Dockerfile", root / "requirements" / LOCK.name
    text = dockerfile.read_text(encoding="utf-8")
    named = _ARG.search(text)
    if named is None:
        raise NotPinned(f"{dockerfile} has no line ARG BASE=name:tag")
    sandboxes = environ.get("SANDBOX_IMAGE_BASE", "").strip() or DEFAULT_BASE
    bases = [reference.partition("@")[0] for reference in (named[1], sandboxes)]
    with httpx2.Client(timeout=_SECONDS, follow_redirects=False) as client:
        by_digest = {base: f"{base}@{_digest(base, client)}" for base in bases}
    dockerfile.write_text(text.replace(named[0], f"ARG BASE={by_digest[bases[0]]}"), encoding="utf-8")
    lock.write_text(f"{by_digest[bases[1]]}\n", encoding="utf-8")
    return list(by_digest.values())


def _digest(reference: str, client: httpx2.Client) -> str:
    """Raises NotPinned."""
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise NotPinned(f"{reference}: an image with a tag is needed, such as {DEFAULT_BASE}")
    host, name = parts["host"] or _HUB, parts["name"]
    if parts["host"] is None and "/" not in name:
        name = f"library/{name}"
    scheme = "http" if (urlsplit(f"//{host}").hostname or "") in LOOPBACK else "https"
    url = f"{scheme}://{host}/v2/{name}/manifests/{parts['tag']}"
    headers = {"accept": _KINDS}
    try:
        status, manifest, challenge = _got(client, url, headers)
        if status == 401 and challenge:
            headers["authorization"] = f"Bearer {_token(client, challenge)}"
            status, manifest, _ = _got(client, url, headers)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError) as error:
        raise NotPinned(f"{reference}: the registry gave no clear answer ({type(error).__name__})") from None
    if status != 200:
        raise NotPinned(f"{reference}: the registry answers {status}: is there such an image, and may anybody pull it?")
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def _got(client: httpx2.Client, url: str, headers: Mapping[str, str]) -> tuple[int, bytes, str]:
    """Status, body and challenge."""
    with client.stream("GET", url, headers=dict(headers)) as answer:
        body = bytearray()
        for part in answer.iter_bytes():
            body += part
            if len(body) > _MOST:
                raise ValueError("more than a manifest")
        said = answer.headers.get("docker-content-digest", "")
        if answer.status_code == 200 and said.startswith("sha256:") and said[7:] != hashlib.sha256(body).hexdigest():
            raise ValueError("the digest is another one")
        return answer.status_code, bytes(body), answer.headers.get("www-authenticate", "")


def _token(client: httpx2.Client, challenge: str) -> str:
    """A token for anybody, as the challenge says where (docker's token authentication)."""
    said = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = said.pop("realm")
    if urlsplit(realm).scheme != "https" and (urlsplit(realm).hostname or "") not in LOOPBACK:
        raise ValueError("a token is asked for over https")
    answer = client.get(realm, params={key: value for key, value in said.items() if key in ("service", "scope")})
    answer.raise_for_status()
    body: Any = answer.json()
    return str(body.get("token") or body["access_token"])


def main() -> int:
    try:
        made = pin(os.environ)
    except NotPinned as error:
        print(error, file=sys.stderr)
        return 1
    for reference in made:
        print(reference)
    print("Written to Dockerfile and requirements/base-images.lock: build both images anew, and commit the two files.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
