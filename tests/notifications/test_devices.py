"""The phones that get notifications, and what their users want to be notified of."""

import secrets
from concurrent.futures import ThreadPoolExecutor

import pytest

from notifications.models import Device, PushSettings
from notifications.push import MOST_DEVICES
from shardmap.shards import on_shard
from tests.support import PASSWORD, Person, Refused, settled

DEFAULTS = {
    "likes": "everyone",
    "comments": "everyone",
    "mentions": "everyone",
    "follows": "everyone",
    "follow_requests": "everyone",
    "first_photos": "everyone",
    "friends_joined": "everyone",
    "quiet_from": "00:00",
    "quiet_to": "00:00",
    "time_zone": "UTC",
    "language": "en",
}


def new_token(size: int = 32) -> str:
    return secrets.token_hex(size)


def register(one: Person, token: str, environment: str = "production") -> dict:
    return one.post("push/devices", token=token, environment=environment)


def unregister(one: Person, token: str) -> None:
    assert one.call("DELETE", "push/devices", form={"token": token}).status_code == 200


def tokens(one: Person) -> list[str]:
    return [device["token"] for device in one.get("push/devices")]


def refused(call, *args, **kwargs) -> dict:
    with pytest.raises(Refused) as error:
        call(*args, **kwargs)
    return error.value.meta


# Devices.


def test_a_phone_is_registered_listed_and_removed():
    one, first, second = Person(), new_token(), new_token(100)
    assert one.get("push/devices") == []
    assert register(one, first.upper()) == {"token": first, "environment": "production"}
    register(one, second, "sandbox")
    assert one.get("push/devices") == [
        {"token": second, "environment": "sandbox"},
        {"token": first, "environment": "production"},
    ]
    unregister(one, second.upper())
    unregister(one, second)  # is gone by now
    assert tokens(one) == [first]


def test_registering_again_changes_the_environment_and_nothing_else():
    one, token, other = Person(), new_token(), new_token()
    for each, environment in ((token, "sandbox"), (other, "sandbox"), (token, "production")):
        register(one, each, environment)
    assert one.get("push/devices") == [
        {"token": token, "environment": "production"},
        {"token": other, "environment": "sandbox"},
    ]


def test_a_phone_belongs_to_who_registered_it_last():
    one, other, token = Person(), Person(), new_token()
    register(one, token)
    register(other, token)
    assert (tokens(one), tokens(other)) == ([], [token])
    unregister(one, token)
    assert tokens(other) == [token]


def test_many_at_once_leave_a_phone_with_one_of_them():
    people, token = [Person() for _ in range(4)], new_token()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: register(one, token), people * 2))
    assert sorted(len(tokens(one)) for one in people) == [0, 0, 0, 1]


def test_the_oldest_phones_go_when_there_are_too_many():
    one, given = Person(), [new_token() for _ in range(MOST_DEVICES + 2)]
    for token in given:
        register(one, token)
    assert tokens(one) == given[:1:-1]


@pytest.mark.parametrize(
    "token", ["", "abc", "g" * 64, "a" * 62, "a" * 65, "a" * 202, f"{'a' * 64}\n", f" {'a' * 64}", "é" * 64]
)
def test_what_is_no_device_token(token):
    one = Person()
    meta = refused(register, one, token)
    assert meta["error_type"] == "APIInvalidParametersError"
    assert meta["error_message"].startswith("token: ")
    assert tokens(one) == []


def test_the_environment_is_one_of_two():
    one = Person()
    for environment in ("", "development"):
        assert "environment" in refused(register, one, new_token(), environment)["error_message"]


def test_only_the_phone_app_manages_notifications(developer):
    one = Person()
    register(one, new_token())
    one.token = developer.allowed_by(one)
    for call in (
        lambda: register(one, new_token()),
        lambda: one.get("push/devices"),
        lambda: one.delete(f"push/devices?token={new_token()}"),
        lambda: one.get("push/settings"),
        lambda: one.post("push/settings", likes="off"),
    ):
        assert refused(call)["error_type"] == "OAuthParameterException"


def test_a_new_password_leaves_the_phones():
    one, token = Person(), new_token()
    register(one, token)
    one.token = one.post("accounts/password", old_password=PASSWORD, new_password=f"{PASSWORD}!")["access_token"]
    assert tokens(one) == [token]


def test_a_deleted_account_leaves_nothing():
    one = Person()
    register(one, new_token())
    one.post("push/settings", likes="off")
    assert one.call("DELETE", "accounts", form={"password": PASSWORD}).status_code == 200
    settled(one)
    assert not Device.objects.filter(user_id=one.id).exists()
    with on_shard(one.id):
        assert not PushSettings.objects.filter(user_id=one.id).exists()


# Settings.


def test_settings_have_defaults_and_change_one_by_one():
    one, other = Person(), Person()
    assert one.get("push/settings") == DEFAULTS
    changed = DEFAULTS | {"likes": "following", "follows": "off"}
    assert one.post("push/settings", likes="following", follows="off") == changed
    changed |= {"quiet_from": "22:00", "quiet_to": "07:30", "time_zone": "Europe/Berlin", "language": "de"}
    quiet = {name: changed[name] for name in ("quiet_from", "quiet_to", "time_zone", "language")}
    assert one.post("push/settings", **quiet) == changed
    assert one.get("push/settings") == changed
    assert one.post("push/settings", follows="everyone")["follows"] == "everyone"
    assert other.get("push/settings") == DEFAULTS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("likes", "on"),
        ("comments", "Everyone"),
        ("quiet_from", "24:00"),
        ("quiet_to", "7:30"),
        ("quiet_to", "07:30\n"),
        ("time_zone", "Europe/Bielefeld"),
        ("time_zone", "../../etc/passwd"),
        ("time_zone", "localtime"),
        ("language", "tlh"),
    ],
)
def test_bad_settings_are_named_and_change_nothing(name, value):
    one = Person()
    meta = refused(one.post, "push/settings", mentions="off", **{name: value})
    assert meta["error_type"] == "APIInvalidParametersError"
    assert meta["error_message"].startswith(f"{name}: ")
    assert one.get("push/settings") == DEFAULTS


def test_there_must_be_something_to_change():
    assert refused(Person().post, "push/settings")["error_type"] == "APIInvalidParametersError"
