"""People of whose doings one is not notified."""

import pytest

from notifications import push, tell
from notifications.models import Muted
from shardmap.shards import on_shard
from tests.notifications.test_tell import activities, bodies, like, say
from tests.support import PASSWORD, Person, Refused, photo_id, settled


def mute(one: Person, *others: Person) -> None:
    for other in others:
        one.post("push/muted", user_id=other.id)


def unmute(one: Person, other: Person) -> None:
    assert one.call("DELETE", "push/muted", form={"user_id": other.id}).status_code == 200


def muted(one: Person) -> list[str]:
    return [user["username"] for user in one.get("push/muted")]


def refused(one: Person, user_id: int | str) -> dict:
    with pytest.raises(Refused) as error:
        one.post("push/muted", user_id=user_id)
    return error.value.meta


def test_people_are_muted_listed_and_heard_again(person):
    one, first, second = person(), person(), person()
    assert one.post("push/muted", user_id=first.id)["username"] == first.username
    mute(one, second, first)  # again
    assert muted(one) == [second.username, first.username]
    assert muted(first) == []
    unmute(one, second)
    unmute(one, second)  # is not muted by now
    assert muted(one) == [first.username]
    nobodys = one.call("DELETE", "push/muted", form={"user_id": 2**62}).json()
    assert nobodys["meta"]["error_type"] == "APINotFoundError"


def test_nothing_is_pushed_of_what_a_muted_person_does(person):
    one, loud, other = person(), person(), person()
    media = one.take()
    loud.follow(one)
    for each in (loud, other):
        like(each, media)
        say(each, media, f"hello, @{one.username}")
    settled(one, loud, other)
    assert len(bodies(one)) == len(activities(one))
    mute(one, loud)
    heard = bodies(one)
    assert len(heard) >= 2
    assert not [body for body in heard if body.startswith(loud.username)]
    unmute(one, loud)
    assert len(bodies(one)) == len(activities(one))


def test_nor_of_a_muted_persons_approval_or_first_photo(person):
    one, loud = person(), person()
    one.follow(loud)
    media = loud.take()
    settled(one, loud)
    assert tell.push_of_approval(one.id, loud.id)
    assert tell.push_of_first_photo(one.id, loud.id, photo_id(media["id"]))
    mute(one, loud)
    assert tell.push_of_approval(one.id, loud.id) is None
    assert tell.push_of_first_photo(one.id, loud.id, photo_id(media["id"])) is None


def test_the_muted_person_cannot_tell(person):
    one, loud = person(), person()
    loud.follow(one)
    media = one.take()
    settled(one, loud)

    def all_that_can_be_seen() -> list:
        paths = ("users/{}", "users/{}/relationship", "users/{}/followed-by", "users/{}/media/recent")
        return [loud.get(path.format(one.id)) for path in paths] + [loud.feed()]

    before = all_that_can_be_seen()
    mute(one, loud)
    assert all_that_can_be_seen() == before
    like(loud, media)
    assert [liker["username"] for liker in loud.get(f"media/{media['id']}/likes")] == [loud.username]
    settled(one, loud)
    assert len(one.get("users/self/activity")) == 2


def test_who_cannot_be_muted(person):
    one, blocker = person(), person()
    blocker.block(one)
    settled(one, blocker)
    assert refused(one, one.id)["error_message"] == "user_id: you cannot mute yourself"
    assert refused(one, "ann")["error_message"].startswith("user_id: ")
    assert refused(one, "")["error_message"].startswith("user_id: ")
    assert refused(one, 2**62)["error_type"] == "APINotFoundError"
    assert refused(one, blocker.id)["error_type"] == "APINotAllowedError"
    assert muted(one) == []


def test_there_is_a_most_that_one_can_mute(person):
    one, last = person(), person()
    with on_shard(one.id):
        Muted.objects.bulk_create(Muted(user_id=one.id, muted_id=-n) for n in range(1, push.MOST_MUTED))
    mute(one, last, last)
    assert refused(one, person().id)["error_type"] == "APINotAllowedError"
    assert muted(one) == [last.username]


def test_a_deleted_account_leaves_nothing(person):
    one, other = person(), person()
    mute(one, other)
    assert one.call("DELETE", "accounts", form={"password": PASSWORD}).status_code == 200
    settled(one)
    with on_shard(one.id):
        assert not Muted.objects.filter(user_id=one.id).exists()
