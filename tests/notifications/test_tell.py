"""What is worth a push, to whom, and what it says: each event comes in by the API, and is decided upon by `tell`."""

import datetime
import json
import time
from gettext import translation

import pytest
from babel.messages.pofile import read_po

from feeds.models import Activity, Kind
from notifications import coalescing, tell
from notifications.models import PushSettings
from notifications.texts import LOCALE, text
from photos.services import is_first
from shardmap.ids import first_id_at
from shardmap.shards import on_shard
from tests.support import Person, new_username, photo_id, settled


def like(one: Person, media: dict) -> None:
    one.post(f"media/{media['id']}/likes")


def say(one: Person, media: dict, words: str) -> str:
    return one.post(f"media/{media['id']}/comments", text=words)["id"]


def activities(one: Person) -> list[int]:
    with on_shard(one.id):
        return list(Activity.objects.filter(recipient_id=one.id).order_by("id").values_list("id", flat=True))


def pushed(one: Person) -> list[dict]:
    """What somebody would be pushed of the activity, oldest first. (Asking twice changes nothing.)"""
    found = [tell.push_of_activity(one.id, activity_id) for activity_id in activities(one)]
    return [push.payload for push in found if push]


def bodies(one: Person) -> list[str]:
    return [payload["aps"]["alert"]["body"] for payload in pushed(one)]


@pytest.fixture
def two(person):
    return person(), person()


# What is said.


def test_each_kind_is_said_with_its_link_picture_and_badge(person):
    one, fan = person(), person()
    media = one.take()
    like(fan, media)
    settled(one, fan)
    say(fan, media, "lovely")
    settled(one, fan)
    other = fan.take(caption=f"with @{one.username}")
    settled(one, fan)
    fan.follow(one)
    settled(one, fan)
    liked, commented, mentioned, followed = pushed(one)
    link = f"media?id={media['id']}"
    assert liked["aps"] == {
        "alert": {"body": f"{fan.username} liked your photo."},
        "badge": 4,
        "sound": "default",
        "thread-id": link,
        "mutable-content": 1,
    }
    assert liked["link"] == f"instagram://{link}"
    assert liked["thumbnail"] == media["images"]["thumbnail"]["url"]
    assert commented["aps"]["alert"]["body"] == f"{fan.username} commented: lovely"
    assert mentioned["aps"]["alert"]["body"] == f"{fan.username} mentioned you: with @{one.username}"
    assert mentioned["link"] == f"instagram://media?id={other['id']}"
    assert followed["aps"]["alert"]["body"] == f"{fan.username} started following you."
    assert followed["link"] == f"instagram://user?username={fan.username}"
    assert followed["thumbnail"] == fan.get("users/self")["profile_picture"]


def test_a_request_is_told_and_so_is_its_approval_but_not_the_follow_that_was_allowed(two):
    one, fan = two
    one.post("accounts/edit", is_private="true")
    fan.follow(one)
    settled(one, fan)
    assert bodies(one) == [f"{fan.username} has asked to follow you."]
    assert tell.push_of_approval(fan.id, one.id) is None
    one.post(f"users/{fan.id}/relationship", action="approve")
    settled(one, fan)
    assert bodies(one) == []
    told = tell.push_of_approval(fan.id, one.id)
    assert told.user_id == fan.id
    assert told.payload["aps"]["alert"]["body"] == f"{one.username} has accepted your request to follow."
    assert "badge" not in told.payload["aps"]


def test_followers_are_told_of_a_first_photo_and_not_of_the_second(two):
    one, fan = two
    fan.follow(one)
    settled(one, fan)
    first, second = one.take(), one.take()
    settled(one, fan)
    assert [is_first(one.id, photo_id(media["id"])) for media in (first, second)] == [True, False]
    told = tell.push_of_first_photo(fan.id, one.id, photo_id(first["id"]))
    assert told.payload["aps"]["alert"]["body"] == f"{one.username} has posted a first photo."
    assert told.payload["link"] == f"instagram://media?id={first['id']}"
    one.delete(f"media/{first['id']}")
    assert tell.push_of_first_photo(fan.id, one.id, photo_id(first["id"])) is None
    assert not is_first(one.id, photo_id(second["id"]))
    one.block(fan)
    assert tell.push_of_first_photo(fan.id, one.id, photo_id(second["id"])) is None


# Whom it is not said to.


def test_what_is_undone_gone_or_hidden_is_not_pushed(person):
    one, fan, blocked, blocker = (person() for _ in range(4))
    liked, gone = one.take(), one.take()
    for each in (fan, blocked, blocker):
        like(each, liked)
    say(fan, gone, "hello")
    comment_id = say(fan, liked, "hello")
    fan.follow(one)
    settled(one, fan, blocked, blocker)
    rows = activities(one)
    assert len(rows) == len(bodies(one)) == 6
    one.block(blocked)
    blocker.block(one)
    fan.unfollow(one)
    fan.delete(f"media/{liked['id']}/likes")
    fan.delete(f"media/{liked['id']}/comments/{comment_id}")
    one.delete(f"media/{gone['id']}")
    # Also before the jobs have taken the rows away.
    assert [tell.push_of_activity(one.id, activity_id) for activity_id in rows] == [None] * 6


def test_what_somebody_does_on_own_photos_is_not_pushed(person):
    one = person()
    media = one.take(caption=f"@{one.username}")
    like(one, media)
    say(one, media, f"me, @{one.username}")
    settled(one)
    assert bodies(one) == []


def test_nobody_is_told_of_what_they_may_not_see(two):
    one, other = two
    other.take(caption=f"@{one.username}")
    settled(one, other)
    assert len(bodies(one)) == 1
    other.post("accounts/edit", is_private="true")
    assert bodies(one) == []


def test_the_wishes_decide_whose_doings_are_told(person):
    one, friend, stranger = person(), person(), person()
    one.follow(friend)
    media = one.take()
    like(friend, media)
    like(stranger, media)
    say(friend, media, "hello")
    settled(one, friend, stranger)
    assert len(bodies(one)) == 3
    one.post("push/settings", likes="following")
    assert len(bodies(one)) == 2
    assert not [body for body in bodies(one) if stranger.username in body]
    one.post("push/settings", likes="off")
    assert bodies(one) == [f"{friend.username} commented: hello"]


@pytest.mark.parametrize(
    ("start", "end", "zone", "utc", "quiet"),
    [
        ("22:00", "08:00", "UTC", "21:59", False),
        ("22:00", "08:00", "UTC", "22:00", True),
        ("22:00", "08:00", "UTC", "00:30", True),
        ("22:00", "08:00", "UTC", "07:59", True),
        ("22:00", "08:00", "UTC", "08:00", False),
        ("12:00", "13:00", "UTC", "12:30", True),
        ("12:00", "13:00", "UTC", "13:00", False),
        ("22:00", "08:00", "Europe/Berlin", "20:30", True),  # in summer
        ("22:00", "08:00", "America/New_York", "20:30", False),
        ("22:00", "08:00", "America/New_York", "02:30", True),
        ("00:00", "00:00", "UTC", "00:00", False),
        ("09:00", "09:00", "UTC", "12:00", False),
    ],
)
def test_quiet_hours(start, end, zone, utc, quiet):
    now = datetime.datetime.fromisoformat(f"2011-07-20T{utc}:00+00:00")
    assert tell.is_quiet(PushSettings(quiet_from=start, quiet_to=end, time_zone=zone), now) is quiet


def test_in_quiet_hours_nothing_is_said(two):
    one, fan = two
    like(fan, one.take())
    settled(one, fan)
    assert len(bodies(one)) == 1
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    one.post("push/settings", quiet_from=f"{now - hour:%H:%M}", quiet_to=f"{now + hour:%H:%M}")
    assert bodies(one) == []
    one.post("push/settings", time_zone="Asia/Tokyo")
    assert len(bodies(one)) == 1


# The badge.


def test_the_badge_counts_what_is_new_since_the_activity_was_read(two):
    one, fan = two
    first, second = one.take(), one.take()
    like(fan, first)
    settled(one, fan)
    say(fan, first, "hello")
    settled(one, fan)
    assert [payload["aps"]["badge"] for payload in pushed(one)] == [2, 2]
    one.get("users/self/activity")
    like(fan, second)
    settled(one, fan)
    assert pushed(one)[-1]["aps"]["badge"] == 1
    fan.delete(f"media/{second['id']}/likes")
    settled(one, fan)
    assert pushed(one)[-1]["aps"]["badge"] == 0


def test_without_a_word_of_when_that_was_the_badge_has_what_came_within_a_day(two):
    (one, fan), days = two, 24 * 3600
    with on_shard(one.id):
        for number, age in enumerate((0, days - 60, days + 60, 30 * days)):
            when = first_id_at(time.time() - age)
            Activity.objects.create(id=when, recipient_id=one.id, kind=Kind.FOLLOW, actor_id=number)
    like(fan, one.take())
    settled(one, fan)
    assert [payload["aps"]["badge"] for payload in pushed(one)] == [2 + 1]


# The texts.


def test_texts_are_in_the_users_language(two):
    one, fan = two
    media = one.take()
    like(fan, media)
    settled(one, fan)
    one.post("push/settings", language="de")
    assert bodies(one) == [f"{fan.username} gefällt dein Foto."]


KINDS = ("like", "comment", "mention", "follow", "request", "approval", "first_photo", "friend_joined", "link_broken")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("others", [0, 1, 99])
def test_each_text_is_translated_and_has_what_it_needs(kind, others):
    english, german = (text(kind, language, "ann", others, "oh") for language in ("en", "de"))
    assert english != german
    for each in (english, german):
        assert "ann" in each
        assert ("oh" in each) == (kind in ("comment", "mention", "friend_joined"))
        assert "{" not in each
    if kind in ("like", "follow", "request"):
        assert (str(others) in english, str(others) in german) == (others > 0, others > 0)


def test_what_people_wrote_is_no_format_and_is_shortened():
    said = "{actor} {0.__class__} %s %(said)s\n\n" + "😀" * 300
    body = text("comment", "de", "ann", said=said)
    assert "{actor} {0.__class__} %s %(said)s 😀" in body
    assert len(body) < 150
    assert body.endswith("😀…")


def test_a_push_is_far_below_what_apns_takes(person):
    one, fan = person(), person(new_username().ljust(30, "x"))
    say(fan, one.take(), "💩" * 300)
    settled(one, fan)
    (payload,) = pushed(one)
    del payload["apns"]
    assert len(json.dumps(payload)) < 2048


# A thousand likes.


def group(kind: str, number: int, photo: int, actor: int, comment: int = 0) -> dict:
    """One row of an activity, as `activity.happened` has it."""
    return {
        "id": number,
        "kind": kind,
        "actors": [{"id": actor}],
        "photo": {"id": photo} if photo else None,
        "comment": {"id": comment} if comment else None,
    }


def told(one: Person, groups: list[dict]) -> list[int]:
    """The numbers of others that are said, of the groups of which anything is."""
    return [others for each in groups if (others := coalescing.others(one.id, each)) is not None]


def test_a_thousand_likes_on_one_photo_are_a_handful_of_pushes():
    one = Person()
    likes = [group("like", number, 7, actor=number) for number in range(1, 1001)]
    assert told(one, likes) == [0, 1, 2, 9, 99, 999]
    # A job that runs again says the same, and counts no more.
    assert told(one, [likes[0], likes[99]]) == [0, 99]
    # On another photo it begins anew; and for another person.
    assert told(one, [group("like", 2001, 8, actor=1)]) == [0]
    assert told(Person(), likes[:3]) == [0, 1, 2]


def test_a_like_that_is_taken_back_and_given_again_is_pushed_once():
    assert told(Person(), [group("like", number, 7, actor=1) for number in range(1, 50)]) == [0]


def test_who_likes_all_photos_is_told_of_a_few_times():
    likes = [group("like", number, photo=number, actor=1) for number in range(1, 101)]
    assert len(told(Person(), likes)) == 11


def test_many_followers_are_told_together():
    follows = [group("follow", number, 0, actor=number) for number in range(1, 101)]
    assert told(Person(), follows) == [0] * 10 + [99]


def test_a_flood_of_comments_or_mentions_by_one_person_is_stemmed():
    for kind in ("comment", "mention"):
        comments = [group(kind, number, 7, actor=1, comment=number) for number in range(1, 100)]
        assert len(told(Person(), comments)) == 10


def test_likes_of_one_photo_replace_each_other_on_the_phone_and_comments_do_not(person):
    one, fan, other = person(), person(), person()
    media = one.take()
    for each in (fan, other):
        like(each, media)
        settled(one, each)
        say(each, media, "hello")
        settled(one, each)
    collapsed = [payload["apns"]["collapse-id"] for payload in pushed(one)]
    assert collapsed[0] == collapsed[2] == f"like:{photo_id(media['id'])}"
    assert len(set(collapsed)) == 3
    assert bodies(one)[2] == f"{other.username} and 1 other liked your photo."


def test_the_compiled_translations_are_those_of_the_text_file():
    german = translation("push", LOCALE, ["de"])
    with (LOCALE / "de/LC_MESSAGES/push.po").open("rb") as written:
        messages = [message for message in read_po(written) if message.id]
    assert len(messages) == 12
    for message in messages:
        if message.pluralizable:
            assert tuple(german.ngettext(*message.id, number) for number in (1, 2)) == message.string
        else:
            assert german.gettext(message.id) == message.string
