"""Friends at Twitter and Facebook who join: who is told of whom."""

import pytest

from notifications.models import FriendTold
from photos import networks
from photos.models import Identity
from shardmap.shards import on_shard
from tests.notifications.test_push import got, phone
from tests.photos import social
from tests.photos.social import SERVICES, Account
from tests.support import PASSWORD, Person, eventually, settled

pytestmark = pytest.mark.parametrize("service", SERVICES)


def friends_of(newcomer: Person, *friends: Account) -> Account:
    """An account of the newcomer's, not linked yet, whose friends at the service these are."""
    account = Account(newcomer, friends[0].service, linked=False)
    account.has_friends(*friends)
    return account


def join(account: Account, *others: Person) -> None:
    account.link()
    settled(account.person, *others)


def bodies(token: str) -> list[str]:
    return [payload["aps"]["alert"]["body"] for payload in got(token)]


def identities(one: Person) -> list[str]:
    return list(Identity.objects.filter(user_id=one.id).values_list("account_id", flat=True))


def test_friends_who_are_here_are_told_on_whatever_page_they_are(person, service):
    newcomer, friends, stranger = person(), [person() for _ in range(3)], person()
    there = [Account(one, service) for one in (*friends, stranger)]
    elsewhere = [Account(newcomer, service, linked=False) for _ in range(2)]  # who are not here
    tokens = [phone(one) for one in (*friends, stranger)]
    join(friends_of(newcomer, there[0], *elsewhere, *there[1:3]), *friends)
    title = networks.NETWORKS[service].title
    assert [bodies(token) for token in tokens[:3]] == [[f"Your {title} friend {newcomer.username} is here now."]] * 3
    (payload,) = got(tokens[0])
    assert payload["link"] == f"instagram://user?username={newcomer.username}"
    assert bodies(tokens[3]) == []


def test_a_friend_is_told_once_however_often_somebody_links(person, service):
    newcomer, friend = person(), person()
    token, account = phone(friend), friends_of(newcomer, Account(friend, service))
    for _ in range(2):
        join(account, friend)
        account.unlink()
    join(account, friend)
    assert len(got(token)) == 1


def test_whom_it_is_no_news_for_or_not_to_be_known_by_is_not_told(person, service):
    newcomer, friends = person(), [person() for _ in range(4)]
    mutual, blocker, blocked, without = friends
    tokens, account = [phone(one) for one in friends], friends_of(newcomer, *(Account(one, service) for one in friends))
    mutual.follow(newcomer)
    newcomer.follow(mutual)
    blocker.block(newcomer)
    newcomer.block(blocked)
    without.post("push/settings", friends_joined="off")
    settled(newcomer, *friends)
    before = [len(got(token)) for token in tokens]
    join(account, *friends)
    assert [len(got(token)) for token in tokens] == before


def test_an_account_belongs_to_the_last_who_linked_it(person, service):
    first, second = person(), person()
    account = Account(first, service)
    assert identities(first) == [account.id]
    account.person = second
    account.link()
    assert (identities(first), identities(second)) == ([], [account.id])


def test_who_unlinks_or_leaves_is_found_no_more(person, service):
    one, other, newcomer = person(), person(), person()
    accounts, tokens = [Account(each, service) for each in (one, other)], [phone(each) for each in (one, other)]
    accounts[0].unlink()
    other.call("DELETE", "accounts", form={"password": PASSWORD})
    settled(one, other)
    assert identities(one) == identities(other) == []
    join(friends_of(newcomer, *accounts), one)
    assert [bodies(token) for token in tokens] == [[], []]


def test_a_link_that_does_not_open_is_nobody(person, service):
    one = person()
    account = Account(one, service)
    account.link(token="1-revoked")
    assert (identities(one), account.status()) == ([], "broken")


def test_a_service_that_is_away_or_busy_is_asked_again(person, service, monkeypatch):
    newcomer, friend = person(), person()
    token, account = phone(friend), friends_of(newcomer, Account(friend, service))
    account.will_answer("error", "limit", to="me")
    account.will_answer("error", "limit", to="friends")
    monkeypatch.setattr(social, "settled", lambda *_: None)  # does not wait for as long as all these pauses may take
    account.link()
    eventually(lambda: got(token), 60)
    settled(newcomer, friend)
    assert len(got(token)) == 1


def test_what_a_user_was_told_goes_with_the_user(person, service):
    newcomer, friend = person(), person()
    phone(friend)
    join(friends_of(newcomer, Account(friend, service)), friend)

    def told() -> list[int]:
        with on_shard(friend.id):
            return list(FriendTold.objects.filter(user_id=friend.id).values_list("friend_id", flat=True))

    assert told() == [newcomer.id]
    friend.call("DELETE", "accounts", form={"password": PASSWORD})
    settled(friend)
    assert told() == []
