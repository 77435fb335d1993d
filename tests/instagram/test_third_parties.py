"""What no app but our own may do, whatever scopes its token has."""

import pytest

from tests.accounts.test_oauth import Browser, Client
from tests.support import PASSWORD, Person

SCOPES = "basic comments relationships likes publish"
CALLS = [
    ("POST", "accounts/edit", {"is_private": "false", "bio": "x"}),
    ("POST", "accounts/password", {"old_password": PASSWORD, "new_password": "another fine phrase"}),
    ("DELETE", "accounts", {"password": PASSWORD}),
    ("GET", "accounts/avatar", {}),
    ("POST", "accounts/avatar", {"upload_id": "0" * 32}),
    ("DELETE", "accounts/avatar", {}),
    ("GET", "push/devices", {}),
    ("POST", "push/devices", {"token": "ab" * 32, "environment": "production"}),
    ("DELETE", "push/devices", {"token": "ab" * 32}),
    ("GET", "push/settings", {}),
    ("POST", "push/settings", {"likes": "off"}),
    ("GET", "push/muted", {}),
    ("POST", "push/muted", {"user_id": "1"}),
    ("DELETE", "push/muted", {"user_id": "1"}),
    ("GET", "shares/accounts", {}),
    ("POST", "shares/accounts", {"service": "facebook", "username": "x", "token": "x"}),
    ("DELETE", "shares/accounts", {"service": "facebook"}),
    ("POST", "media", {"upload_id": "0" * 32, "share_to[]": "facebook"}),
    ("GET", "media/1_1/shares", {}),
    ("POST", "media/1_1/shares", {"share_to[]": "facebook"}),
]


@pytest.fixture(scope="module")
def app():
    """A user, by the token of an app that may do all that apps may."""
    one = Person()
    one.token = Client(Browser(Person())).token_of(Browser(one), scope=SCOPES)
    return one


@pytest.mark.parametrize(("method", "path", "form"), CALLS, ids=lambda value: str(value))
def test_only_the_phone_app_may(app, method, path, form):
    answer = app.call(method, path, form=form).json()
    assert answer["meta"]["error_type"] == "OAuthParameterException"
    assert "only the phone app may" in answer["meta"]["error_message"]


def test_who_asks_to_follow_is_told_with_a_scope_alone(app):
    one = Person()
    one.token = Client(Browser(Person())).token_of(Browser(one))
    for path in ("users/self/activity", "users/self/requested-by"):
        assert one.call("GET", path).json()["meta"]["error_type"] == "OAuthPermissionsException"
        assert app.get(path) == []


def test_that_app_may_do_the_rest(app):
    assert app.get("users/self")["id"] == str(app.id)
