"""Fixtures for tests over real sockets: one offline world for each process that runs tests."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support.preloaded import forked_interpreters, loaded_once, share_authorities
from tests.support.world import OfflineWorld, Place, offline_world

# An example takes as long as the machine lets it.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    """For the processes that run tests, where this one only starts them."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        whole_run = contextlib.ExitStack()
        whole_run.enter_context(loaded_once())
        config.add_cleanup(whole_run.close)


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """The SDKs and the tests themselves are millions of objects that live until the end: the collector would walk them
    hundreds of times."""
    gc.disable()
    share_authorities()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def unconfigured_loggers() -> None:
    """Each test finds our loggers as before `configure_logging`, so that `caplog` has a record once: whoever serves in
    this process keeps them to itself, and pytest listens at such loggers and at the root."""
    for name in ("functions", "shared"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def world() -> Iterator[OfflineWorld]:
    with offline_world(forked=True) as running:
        yield running


@pytest.fixture
def interpreters(world: OfflineWorld) -> Iterator[None]:
    """Sandboxes that this test makes start each worker as an image does."""
    launcher = world.tensorlake_admin.get("settings")["launcher"]
    world.tensorlake_admin.patch("settings", {"launcher": None})
    yield
    world.tensorlake_admin.patch("settings", {"launcher": launcher})


@pytest.fixture(scope="module")
def forked_here() -> Iterator[None]:
    """Archives and modules of ours that the process of these tests starts are forked."""
    with forked_interpreters():
        yield


@pytest.fixture
def place(world: OfflineWorld) -> Iterator[Place]:
    """An environment of this test's own; faults that the test left armed are taken away."""
    yield world.place()
    world.claude_admin.delete("faults")
    world.tensorlake_admin.delete("faults")
