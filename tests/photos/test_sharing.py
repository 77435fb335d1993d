import pytest
from django.conf import settings

from photos import sharing
from photos.models import ShareAccount
from shardmap.shards import on_shard
from tests.accounts.test_oauth import Browser, Client
from tests.support import PASSWORD, Person, Refused, settled

TWITTER = {"service": "twitter", "username": "bird", "token": "12-abcDEF", "secret": "s3cr3t"}
FACEBOOK = {"service": "facebook", "username": "Some Body", "token": "EAAC123"}


def rows(one: Person) -> list[ShareAccount]:
    with on_shard(one.id):
        return list(ShareAccount.objects.filter(user_id=one.id))


def test_accounts_are_linked_listed_and_unlinked(person):
    one, other = person(), person()
    assert one.get("shares/accounts") == []
    assert one.post("shares/accounts", **TWITTER) == {"service": "twitter", "username": "bird"}
    one.post("shares/accounts", **FACEBOOK)
    assert [account["service"] for account in one.get("shares/accounts")] == ["facebook", "twitter"]
    assert other.get("shares/accounts") == []
    one.call("DELETE", "shares/accounts", form={"service": "facebook"})
    assert one.get("shares/accounts") == [{"service": "twitter", "username": "bird"}]
    again = one.call("DELETE", "shares/accounts", form={"service": "facebook"})
    assert again.json()["meta"]["error_type"] == "APINotFoundError"


def test_a_second_account_at_a_service_takes_the_first_one_s_place(person):
    one = person()
    one.post("shares/accounts", **TWITTER)
    one.post("shares/accounts", **TWITTER | {"username": "owl", "token": "13-x"})
    (account,) = rows(one)
    assert account.username == "owl"
    assert sharing.credentials_of(account) == {"token": "13-x", "secret": "s3cr3t"}


def test_what_opens_an_account_is_stored_encrypted_and_keys_can_be_changed(person, monkeypatch):
    one = person()
    one.post("shares/accounts", **TWITTER)
    (account,) = rows(one)
    assert TWITTER["token"] not in account.credentials
    monkeypatch.setattr(settings, "CREDENTIALS_KEYS", ["a new key", *settings.CREDENTIALS_KEYS])
    assert sharing.credentials_of(account)["token"] == TWITTER["token"]
    sharing.link(one.id, **FACEBOOK, secret=None)
    monkeypatch.setattr(settings, "CREDENTIALS_KEYS", ["a new key"])
    assert [sharing.credentials_of(row)["token"] for row in rows(one) if row.service == "facebook"] == ["EAAC123"]


@pytest.mark.parametrize(
    ("form", "named"),
    [
        (TWITTER | {"service": "myspace"}, "service"),
        (TWITTER | {"secret": ""}, "secret"),
        (FACEBOOK | {"secret": "x"}, "secret"),
        (TWITTER | {"token": "a b"}, "token"),
        (TWITTER | {"token": "x" * 1001}, "token"),
        (TWITTER | {"username": "x" * 101}, "username"),
    ],
)
def test_a_bad_account_names_what_is_wrong(person, form, named):
    one = person()
    with pytest.raises(Refused) as refused:
        one.post("shares/accounts", **form)
    assert refused.value.meta["error_type"] == "APIInvalidParametersError"
    assert refused.value.meta["error_message"].startswith(named)
    assert one.get("shares/accounts") == []


def test_other_apps_may_not_link_accounts():
    one = Person()
    one.token = Client(Browser(Person())).token_of(Browser(one))
    with pytest.raises(Refused) as refused:
        one.post("shares/accounts", **TWITTER)
    assert refused.value.meta["error_type"] == "OAuthParameterException"


def test_they_go_with_their_user(person):
    one = person()
    one.post("shares/accounts", **TWITTER)
    one.call("DELETE", "accounts", form={"password": PASSWORD})
    settled(one)
    assert rows(one) == []
