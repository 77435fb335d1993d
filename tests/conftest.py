"""Every test runs against the real servers of a stack that it has to itself: `make test` starts one for each process
that runs tests (docs/local-stack.md).

Nothing is rolled back or emptied between tests; each makes users of its own.
"""

import os

import django
import pytest
import requests
from django.conf import settings
from django.db import connections

_stacks = os.environ.get("STACKS", os.environ.get("STACK", "test")).split()
_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
assert _process < len(_stacks), f"a stack for each process, please: STACKS='{' '.join(_stacks)}' has too few"
os.environ["STACK"] = _stacks[_process]
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "instagram.settings")
django.setup()

from deploy.local.layout import Stack  # noqa: E402
from shardmap import cache, redis_client  # noqa: E402  (needs the settings)
from tests.support import Person, ctl, eventually, is_back  # noqa: E402


@pytest.fixture(autouse=True)
def fresh_connections():
    """A test may kill the servers that this process is connected to; the next one begins with none."""
    yield
    connections.close_all()
    redis_client.disconnect()
    for server in settings.MEMCACHED:
        cache._client(server).close()
    cache._down_until.clear()
    for server in redis_client._servers.values():  # nor does it leave one alone that was silent a moment ago
        server.answered()
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
        eventually(lambda: is_back() and all_is_well(), 30, "the site is well again")


def all_is_well() -> bool:
    """At the edge, and at each app server by itself: another one, asked a moment ago, may say what was then."""
    app_servers = [f"http://{address}" for address in Stack(os.environ["STACK"]).addresses("gunicorn")]
    answers = [requests.get(f"{url}/readyz", timeout=20).text for url in (settings.SITE_URL, *app_servers)]
    return all(line.endswith(": ok") for answer in answers for line in answer.splitlines())
