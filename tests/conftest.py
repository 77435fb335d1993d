"""Every test runs against the real servers of the stack `test` (see docs/local-stack.md): `make test` starts them.

Nothing is rolled back or emptied between tests; each makes users of its own. So tests can run at the same time, but for
those marked `alone`: they stop servers, empty them, or look at what all users share.
"""

import os

import django
import pytest
from django.conf import settings
from django.db import connections

os.environ.setdefault("STACK", "test")
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "instagram.settings")
django.setup()

from shardmap import redis_client  # noqa: E402  (needs the settings)
from tests.support import Person, ctl, eventually, get  # noqa: E402


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items):
    for item in items:
        if {"stopped", "no_workers"} & set(item.fixturenames):
            item.add_marker("alone")


@pytest.fixture(autouse=True)
def fresh_connections():
    """A test may kill the servers that this process is connected to; the next one begins with none."""
    yield
    connections.close_all()
    redis_client.disconnect()
    for url in (settings.REDIS_SHARDMAP_URL, settings.REDIS_FEEDS_URL):
        redis_client.redis_client(url).connection_pool.disconnect()


@pytest.fixture(scope="module")
def no_workers():
    """Jobs wait: what is done with them, a test does itself."""
    ctl("stop", "worker")
    yield
    ctl("start", "worker")


@pytest.fixture
def person():
    """A function that signs somebody up through the API."""
    return Person


@pytest.fixture
def stopped():
    """A function that stops programs of the stack; when the test ends they run again, and the site is well."""
    names = []

    def stop(*programs: str) -> None:
        names.extend(programs)
        ctl("stop", *programs)

    yield stop
    if names:
        ctl("start", *names)
        eventually(all_is_well, 30, "the site is well again")


def all_is_well() -> bool:
    return all(line.endswith(": ok") for line in get("/readyz").text.splitlines())
