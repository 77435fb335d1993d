import datetime

import pytest
import requests
from django.conf import settings
from oauth2_provider.models import AccessToken

from accounts import tokens
from accounts.errors import InvalidToken
from shardmap import cache
from tests.support import PASSWORD, Person, Refused, new_username


def sign_up(**changes):
    username = new_username()
    form = {
        "client_id": "phone",
        "username": username,
        "password": PASSWORD,
        "email": f"{username}@example.com",
        "full_name": "Some Body",
    }
    return requests.post(f"{settings.SITE_URL}/v1/accounts", data=form | changes, timeout=20)


def xauth(**changes):
    form = {"client_id": "phone", "grant_type": "password", "password": PASSWORD}
    return requests.post(f"{settings.SITE_URL}/oauth/access_token", data=form | changes, timeout=20)


def test_signing_up_gives_a_token_that_works():
    answer = sign_up(full_name="Zoë").json()
    token, user = answer["data"]["access_token"], answer["data"]["user"]
    me = requests.get(f"{settings.SITE_URL}/v1/users/self?access_token={token}", timeout=20).json()["data"]
    assert me["id"] == user["id"]
    assert me["full_name"] == "Zoë"
    assert me["counts"] == {"media": 0, "follows": 0, "followed_by": 0}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"username": ""}, "username"),
        ({"username": "a" * 31}, "username"),
        ({"username": "with space"}, "username"),
        ({"username": "émile"}, "username"),
        ({"username": "a-b"}, "username"),
        ({"username": "a\n"}, "username"),
        ({"username": "a\0b"}, "username"),
        ({"password": ""}, "password"),
        ({"password": "short"}, "password"),
        ({"password": "password1"}, "password"),
        ({"password": "9876543210"}, "password"),
        ({"password": "x" * 129}, "password"),
        ({"email": "nobody"}, "email"),
        ({"email": ""}, "email"),
        ({"email": f"{'x' * 60}@{'y' * 60}.{'z' * 60}.{'w' * 60}.example.com"}, "email"),
        ({"full_name": "x" * 65}, "full_name"),
    ],
)
def test_bad_sign_ups_name_what_is_wrong(change, named):
    response = sign_up(**change)
    meta = response.json()["meta"]
    assert response.status_code == meta["code"] == 400
    assert meta["error_type"] == "APIInvalidParametersError"
    assert named in meta["error_message"]


def test_a_username_is_unique_whatever_its_case():
    username = new_username()
    assert sign_up(username=username).status_code == 200
    again = sign_up(username=username.upper())
    assert again.status_code == 400
    assert "taken" in again.json()["meta"]["error_message"]


def test_an_email_is_unique_whatever_its_case():
    email = f"{new_username()}@example.com"
    assert sign_up(email=email).status_code == 200
    again = sign_up(email=email.upper())
    assert "email" in again.json()["meta"]["error_message"]


@pytest.mark.parametrize("username", ["a", "a" * 30, "0.9_z", "UPPER"])
def test_good_usernames(username):
    suffix = new_username()
    name = username if len(username) == 30 else f"{username}{suffix}"
    if len(username) == 30:
        name = suffix.ljust(30, "a")
    user = sign_up(username=name, email=f"{suffix}@example.com").json()["data"]["user"]
    assert user["username"] == name.lower()


def test_only_the_phone_app_may_sign_up():
    assert sign_up(client_id="somebody").json()["meta"]["error_type"] == "OAuthParameterException"


def test_xauth_gives_a_token_whatever_the_case_of_the_name(person):
    one = person()
    answer = xauth(username=one.username.upper()).json()
    assert answer["user"]["id"] == str(one.id)
    assert {"username", "full_name", "profile_picture", "bio", "website"} <= set(answer["user"])
    assert tokens.viewer_of(answer["access_token"]).scopes == set(settings.OAUTH2_PROVIDER["SCOPES"])


@pytest.mark.parametrize(
    "change",
    [
        {"password": "wrong"},
        {"username": "nobody.at.all"},
        {"client_id": "somebody"},
        {"client_id": ""},
        {"grant_type": "client_credentials"},
        {"username": ""},
    ],
)
def test_xauth_refuses(person, change):
    response = xauth(**({"username": person().username} | change))
    assert response.status_code == 400
    assert "access_token" not in response.json()
    assert response.json()["meta"]["error_message"]
    assert response.json()["error_message"] == response.json()["meta"]["error_message"]


def test_a_changed_password_ends_every_session_and_begins_a_new_one(person):
    one = person()
    other_phone = xauth(username=one.username).json()["access_token"]
    new = one.post("accounts/password", old_password=PASSWORD, new_password="another fine phrase")
    with pytest.raises(Refused) as refused:
        one.get("users/self")
    assert refused.value.meta["error_type"] == "OAuthAccessTokenException"
    with pytest.raises(InvalidToken):
        tokens.viewer_of(other_phone)
    assert tokens.viewer_of(new["access_token"]).user_id == one.id
    assert xauth(username=one.username).status_code == 400
    assert xauth(username=one.username, password="another fine phrase").status_code == 200


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"old_password": "wrong"}, "old_password"),
        ({"old_password": "x" * 200}, "old_password"),
        ({"new_password": "short"}, "new_password"),
        ({"new_password": "x" * 129}, "new_password"),
    ],
)
def test_a_bad_change_of_password_changes_nothing(person, change, named):
    one = person()
    with pytest.raises(Refused) as refused:
        one.post("accounts/password", **({"old_password": PASSWORD, "new_password": "another fine phrase"} | change))
    assert named in refused.value.meta["error_message"]
    assert xauth(username=one.username).status_code == 200


def test_a_revoked_token_stops_working_at_once(person):
    one = person()
    one.get("users/self")  # now it is in the cache
    answer = requests.post(
        f"{settings.SITE_URL}/oauth/revoke_token", data={"client_id": "phone", "token": one.token}, timeout=20
    )
    assert answer.status_code == 200
    with pytest.raises(Refused) as refused:
        one.get("users/self")
    assert refused.value.meta["error_type"] == "OAuthAccessTokenException"


def test_a_token_that_is_deleted_in_any_other_way_stops_working_at_once(person):
    one = person()
    one.get("users/self")
    AccessToken.objects.get(token=one.token).delete()
    with pytest.raises(Refused):
        one.get("users/self")


def test_a_token_that_is_made_to_expire_stops_working_at_once(person):
    one = person()
    one.get("users/self")
    token = AccessToken.objects.get(token=one.token)
    token.expires = datetime.datetime.now(datetime.UTC)
    token.save()
    with pytest.raises(Refused):
        one.get("users/self")


def test_checking_a_known_token_asks_only_memcached(person, monkeypatch):
    one = person()
    tokens.viewer_of(one.token)
    monkeypatch.setattr(tokens.AccessToken, "objects", None)
    asked = []
    ask = cache._ask
    monkeypatch.setattr(cache, "_ask", lambda *args: asked.append(args) or ask(*args))
    assert tokens.viewer_of(one.token).user_id == one.id
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("token", "error_type"),
    [("", "OAuthParameterException"), ("x" * 300, "OAuthParameterException"), ("nope", "OAuthAccessTokenException")],
)
def test_bad_tokens(token, error_type):
    response = requests.get(f"{settings.SITE_URL}/v1/users/self", params={"access_token": token}, timeout=20)
    assert response.status_code == 400
    assert response.json()["meta"]["error_type"] == error_type


def test_who_has_no_picture_is_shown_with_one_that_exists(person):
    picture = requests.get(person().get("users/self")["profile_picture"], timeout=10)
    assert picture.status_code == 200
    assert picture.headers["Content-Type"] == "image/jpeg"


def test_other_users_are_shown_without_what_is_private(person):
    one, other = person(), person()
    shown = one.get(f"users/{other.id}")
    assert shown["username"] == other.username
    assert "example.com" not in str(shown)


@pytest.mark.parametrize("user_id", ["0", "999999999", str(2**63 - 1)])
def test_users_who_do_not_exist(person, user_id):
    with pytest.raises(Refused) as refused:
        person().get(f"users/{user_id}")
    assert refused.value.meta["error_type"] == "APINotFoundError"


@pytest.mark.parametrize("user_id", ["abc", "-1", str(2**63), "1e3", "1.0", "1_0", " 1", "+1", "1%0a", "\u0661"])
def test_user_ids_that_are_none(person, user_id):
    with pytest.raises(Refused) as refused:
        person().get(f"users/{user_id}")
    assert refused.value.meta["error_type"] == "APIInvalidParametersError"
    assert "user_id" in refused.value.meta["error_message"]


def test_a_token_without_the_scope_cannot_follow(person):
    one, other = person(), person()
    answer = xauth(username=one.username, scope="basic").json()
    reader = Person.__new__(Person)
    reader.token = answer["access_token"]
    with pytest.raises(Refused) as refused:
        reader.follow(other)
    assert refused.value.meta["code"] == 403
    assert refused.value.meta["error_type"] == "OAuthPermissionsException"
