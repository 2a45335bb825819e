"""Is the image of the session sandboxes registered? What is in it, a probe sandbox shows (probe.py)."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from infra.cli.doctor.context import NO_TENSORLAKE, DoctorContext, http_client
from infra.cli.doctor.findings import Say, error, ok, warning
from shared.unanswered import unanswered

# docs/wire/tensorlake.md#10-images: the registry, and the older one that still answers for old images.
_PLACES: Final = ("images/v4/images/name", "platform/v1/sandbox-templates/by-name")


async def check_image(context: DoctorContext, image: str, say: Say) -> None:
    import httpx2

    url = context.settings.tensorlake_url
    status = 0
    async with http_client(url, authorization=f"Bearer {context.settings.tensorlake_key.reveal()}") as client:
        for place in _PLACES:
            try:
                status = (await client.get(f"{url}/{place}/{quote(image, safe='')}")).status_code
            except httpx2.HTTPError as problem:
                say(warning("HANDS001", f"the image could not be looked up: {unanswered(problem, url)}", NO_TENSORLAKE))
                return
            if status == 200:
                say(ok("HANDS401", f"{image!r} is registered"))
                return
    if status == 404:
        say(error("HANDS401", f"{image!r} is not registered in the key's project"))
    else:
        say(warning("HANDS001", f"the image could not be looked up: HTTP {status}"))
