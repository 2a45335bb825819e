"""A service that does not answer is named with its host, the proxy's variable, and what to do, and with no secret."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator

import anthropic
import httpx2
import pytest

from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes
from shared.ports import NoAnswer
from shared.secret import Secret
from shared.unanswered import certificate_advice, unanswered

PROXY = "http://user:s3cret@127.0.0.1:{port}"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture
def closed() -> Iterator[int]:
    """A port of this machine at which nothing listens."""
    with socket.socket() as held:  # bound and not listening: nobody else gets it meanwhile
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def failed(url: str) -> httpx2.HTTPError:
    with pytest.raises(httpx2.HTTPError) as caught:
        httpx2.get(url)
    return caught.value


def test_a_closed_port_is_named_and_asked_about(closed: int) -> None:
    said = unanswered(failed(f"http://user:s3cret@127.0.0.1:{closed}/v1"))
    assert said == f"no answer from 127.0.0.1:{closed} (connection refused): does it run, and is that its address?"


def test_the_sdks_error_tells_the_host_and_the_cause_beneath_it(closed: int) -> None:
    with (
        anthropic.Anthropic(api_key="s3cret", base_url=f"http://127.0.0.1:{closed}", max_retries=0) as client,
        pytest.raises(anthropic.APIConnectionError) as caught,
    ):
        client.beta.agents.list()
    assert unanswered(caught.value).startswith(f"no answer from 127.0.0.1:{closed} (connection refused)")


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_dead_proxy_is_told_by_its_variable_and_never_by_its_password(
    closed: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, PROXY.format(port=closed))
    said = unanswered(failed("https://api.anthropic.com/v1/sessions"))
    assert said == (
        f"no answer from api.anthropic.com through the proxy in {name} (connection refused): "
        f"check that proxy, or unset {name}"
    )


def test_a_proxy_has_no_part_in_what_is_spared_from_it(closed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY.format(port=closed))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "PROXY" not in unanswered(failed(f"http://127.0.0.1:{closed}"))


def test_a_name_that_is_not_found_means_the_network() -> None:
    try:
        try:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        except OSError as inner:
            raise httpx2.ConnectError("no") from inner
    except httpx2.ConnectError as error:
        said = unanswered(error, "https://api.anthropic.com")
    assert said == (
        "no answer from api.anthropic.com (its name is not found): check the network; where it needs a proxy, "
        "set HTTPS_PROXY"
    )


def test_an_address_that_is_none_is_not_shown() -> None:
    assert unanswered(ValueError(), "http://user:s3cret@[broken").startswith("no answer from the service (ValueError)")


def test_tensorlakes_sdk_without_an_answer_has_refused_nothing(closed: int) -> None:
    async def listed() -> object:
        key = Secret("TENSORLAKE_API_KEY", "tl_s3cret")
        host = TensorlakeSandboxes(api_url=f"http://127.0.0.1:{closed}", api_key=key, bind_seconds=5.0)
        try:
            return await host.list_sandboxes()
        finally:
            await host.aclose()

    found = asyncio.run(listed())
    assert isinstance(found, NoAnswer)
    assert found.reason.startswith(f"no answer from 127.0.0.1:{closed} (")


def test_an_untrusted_certificate_is_found_behind_the_errors_that_wrap_it() -> None:
    try:
        try:
            raise ssl.SSLCertVerificationError("self-signed")
        except OSError:
            raise RuntimeError("connect failed")  # noqa: B904  # as libraries do
    except RuntimeError as error:
        assert "SSL_CERT_FILE" in (certificate_advice(error) or "")
        assert unanswered(error) == certificate_advice(error)
    assert certificate_advice(ValueError("other")) is None
