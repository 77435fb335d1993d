import pytest

from tests.accounts.test_oauth import Browser, Client
from tests.notifications.developer import Developer
from tests.support import Person


@pytest.fixture(scope="session")
def owner() -> Browser:
    """Who registers clients."""
    return Browser(Person())


@pytest.fixture
def developer(owner):
    one = Developer(Client(owner))
    yield one
    one.call("DELETE", object="all")
    one.stop()


another_developer = developer
