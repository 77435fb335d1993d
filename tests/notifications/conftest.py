import pytest

from tests.accounts.test_oauth import Browser, Client
from tests.notifications.developer import Developer
from tests.support import Person


@pytest.fixture(scope="module")
def owner() -> Browser:
    """Who registers clients. (Of a module: the tests of another one may kill the Redis that has the sessions.)"""
    return Browser(Person())


@pytest.fixture
def developer(owner):
    one = Developer(Client(owner))
    yield one
    one.call("DELETE", object="all")
    one.stop()


another_developer = developer
