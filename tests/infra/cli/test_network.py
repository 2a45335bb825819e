"""Proxy and certificate variables: harmless for this machine, checked for everywhere else."""

from __future__ import annotations

from pathlib import Path

import certifi
import pytest

from infra.cli import network
from shared.errors import SettingsError

LOCAL = ("http://127.0.0.1:8700", "http://localhost:8701")
REAL = ("https://api.anthropic.com", "https://api.tensorlake.ai")


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://localhost", "http://[::1]:5/x"])
def test_this_machine_is_known_by_each_of_its_names(address: str) -> None:
    assert network.is_this_machine(address)
    assert not network.is_this_machine("https://api.anthropic.com")
    assert not network.is_this_machine("http://[broken")


def test_for_services_on_this_machine_the_variables_go() -> None:
    environ = {
        "ALL_PROXY": "socks5h://127.0.0.1:9",
        "https_proxy": "not a url at all",
        "NO_PROXY": "[::1]",
        "SSL_CERT_FILE": "/nowhere",
        "HOME": "/h",
    }
    network.prepare(environ, LOCAL)
    assert environ == {"HOME": "/h"}


def test_beside_a_proxy_this_machine_is_spared_and_brackets_are_taken_off() -> None:
    environ = {"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": ".corp.example,[::1]"}
    network.prepare(environ, REAL)
    assert environ["NO_PROXY"] == environ["no_proxy"] == ".corp.example,::1,127.0.0.1,localhost"


def test_without_a_proxy_nothing_changes() -> None:
    environ = {"HOME": "/h"}
    network.prepare(environ, REAL)
    assert environ == {"HOME": "/h"}


def test_brackets_in_no_proxy_alone_would_break_one_of_the_sdks_and_are_taken_off() -> None:
    environ = {"no_proxy": "corp.example [::1]"}
    network.prepare(environ, REAL)
    assert environ["NO_PROXY"] == environ["no_proxy"] == "corp.example,::1,127.0.0.1,localhost"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"ALL_PROXY": "socks5h://user:s3cret@127.0.0.1:9"}, "ALL_PROXY names a SOCKS proxy"),
        ({"https_proxy": "http://user:s3cret@[broken"}, "https_proxy is no proxy's address"),
        ({"HTTP_PROXY": "http://user:s3cret@host:99999"}, "HTTP_PROXY is no proxy's address"),
        ({"HTTP_PROXY": "ftp://user:s3cret@host"}, "HTTP_PROXY is no proxy's address"),
        ({"SSL_CERT_FILE": "/nowhere/s3cret"}, "SSL_CERT_FILE names is not there"),
        ({"SSL_CERT_FILE": __file__}, "holds no certificate that can be read"),
        ({"SSL_CERT_DIR": "/nowhere/s3cret"}, "SSL_CERT_DIR names is not there"),
    ],
)
def test_what_cannot_work_is_named_by_its_variable_and_never_by_its_value(variables: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        network.prepare(variables, REAL)
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)


def test_certificates_that_are_there_are_kept(tmp_path: Path) -> None:
    environ = {"SSL_CERT_FILE": certifi.where(), "SSL_CERT_DIR": f"/nowhere:{tmp_path}"}
    before = dict(environ)
    network.prepare(environ, REAL)
    assert environ == before
