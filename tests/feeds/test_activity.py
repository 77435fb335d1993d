import pytest

from feeds import activity, jobs
from feeds.models import Activity
from shardmap.ids import MAX_ID
from shardmap.shards import on_shard
from tests.support import photo_id, settled


def told(one, **params) -> list[tuple[str, list[int]]]:
    """What the activity says: (type, IDs of the users), newest first."""
    return [
        (item["type"], [int(user["id"]) for user in item["users"]]) for item in one.get("users/self/activity", **params)
    ]


def like(one, media: dict) -> None:
    one.post(f"media/{media['id']}/likes")


def say(one, media: dict, text: str) -> str:
    return one.post(f"media/{media['id']}/comments", text=text)["id"]


@pytest.fixture
def two(person):
    return person(), person()


def test_a_like_is_told_with_its_photo_until_it_is_taken_back(two):
    one, fan = two
    media = one.take()
    like(fan, media)
    settled(one, fan)
    (item,) = one.get("users/self/activity")
    assert (item["type"], item["count"]) == ("like", 1)
    assert item["users"][0]["username"] == fan.username
    assert item["media"] == {key: media[key] for key in ("id", "link", "images")}
    fan.delete(f"media/{media['id']}/likes")
    settled(one, fan)
    assert told(one) == []


def test_likes_on_one_photo_are_grouped_where_the_latest_is(person):
    one, *fans = (person() for _ in range(7))
    first, second = one.take(), one.take()
    for fan in fans[:5]:
        like(fan, first)
        settled(one, fan)
    like(fans[0], second)
    settled(one, fans[0])
    like(fans[5], first)
    settled(one, fans[5])
    grouped, alone = one.get("users/self/activity")
    assert grouped["media"]["id"] == first["id"]
    assert grouped["count"] == 6
    assert [int(user["id"]) for user in grouped["users"]] == [fan.id for fan in (fans[5], *fans[4:1:-1])]
    assert (alone["media"]["id"], alone["count"]) == (second["id"], 1)


def test_a_comment_is_told_to_the_owner_and_to_whom_it_mentions(person):
    one, writer, mentioned, also = (person() for _ in range(4))
    media = one.take()
    text = (
        f"@{mentioned.username}, look; (@{also.username.upper()}). @{writer.username} @{one.username} a@{also.username}"
    )
    comment_id = say(writer, media, text)
    settled(one, writer, mentioned, also)
    (item,) = one.get("users/self/activity")
    assert (item["type"], item["comment"]["text"]) == ("comment", text)
    assert item["comment"]["from"]["username"] == writer.username
    for other in (mentioned, also):
        assert told(other) == [("mention", [writer.id])]
    assert told(writer) == []
    writer.delete(f"media/{media['id']}/comments/{comment_id}")
    settled(one, writer, mentioned, also)
    assert [told(each) for each in (one, mentioned, also)] == [[], [], []]


def test_a_name_may_end_with_a_dot_and_so_may_a_sentence(person, two):
    one, writer = two
    dotted = person(f"{one.username}.")
    say(writer, writer.take(), f"@{dotted.username}")
    settled(one, writer, dotted)
    assert (told(dotted), told(one)) == ([("mention", [writer.id])], [])


def test_a_caption_mentions_and_an_edit_changes_whom(person):
    one, before, after, both = (person() for _ in range(4))
    media = one.take(caption=f"with @{before.username} and @{both.username}")
    settled(one, before, both)
    assert told(before) == told(both) == [("mention", [one.id])]
    one.post(f"media/{media['id']}", caption=f"with @{after.username} and @{both.username}")
    settled(one, before, after, both)
    assert told(before) == []
    assert told(after) == told(both) == [("mention", [one.id])]
    one.delete(f"media/{media['id']}")
    assert told(after) == []


def test_what_one_does_oneself_is_not_told(person):
    one = person()
    media = one.take(caption=f"@{one.username}")
    like(one, media)
    say(one, media, f"me, @{one.username}")
    settled(one)
    assert told(one) == []


def test_a_follow_is_told_until_it_ends(two):
    one, fan = two
    fan.follow(one)
    settled(one, fan)
    assert told(one) == [("follow", [fan.id])]
    fan.unfollow(one)
    settled(one, fan)
    assert told(one) == []


def test_a_request_is_told_and_becomes_a_follow(two):
    one, fan = two
    one.post("accounts/edit", is_private="true")
    fan.follow(one)
    settled(one, fan)
    assert told(one) == [("request", [fan.id])]
    one.post(f"users/{fan.id}/relationship", action="approve")
    settled(one, fan)
    assert told(one) == [("follow", [fan.id])]


def test_nothing_is_told_of_whom_the_viewer_may_not_know_of_or_of_what_the_viewer_may_not_see(person):
    one, blocked, hidden = person(), person(), person()
    media = one.take()
    like(blocked, media)
    settled(one, blocked)  # here and below: else these jobs may be done in any order
    say(blocked, media, "hello")
    settled(one, blocked)
    blocked.follow(one)
    settled(one, blocked)
    hidden.take(caption=f"@{one.username}")
    settled(one, blocked, hidden)
    assert [kind for kind, _ in told(one)] == ["mention", "follow", "comment", "like"]
    one.block(blocked)
    hidden.post("accounts/edit", is_private="true")
    assert told(one) == []


def test_a_deleted_photo_is_no_longer_told_of(two):
    one, fan = two
    media, kept = one.take(), one.take()
    like(fan, media)
    say(fan, media, "hello")
    like(fan, kept)
    settled(one, fan)
    one.delete(f"media/{media['id']}")
    assert told(one) == [("like", [fan.id])]
    settled(one, fan)
    with on_shard(one.id):
        assert list(Activity.objects.filter(recipient_id=one.id).values_list("photo_id", flat=True)) == [
            photo_id(kept["id"])
        ]


def test_pages_neither_repeat_nor_skip_while_more_happens(person):
    one, *fans = (person() for _ in range(5))
    first, second = one.take(), one.take()
    for fan in fans[:4]:
        like(fan, first)
        settled(one, fan)
        say(fan, second, "hello")
        settled(one, fan)
    answer = one.call("GET", "users/self/activity", params={"count": 2}).json()
    pages = [answer["data"]]
    like(fans[0], second)
    settled(one, fans[0])
    while answer["pagination"]:
        cursor = answer["pagination"]["next_cursor"]
        answer = one.call("GET", "users/self/activity", params={"count": 2, "cursor": cursor}).json()
        pages.append(answer["data"])
    found = [(item["type"], int(user["id"])) for page in pages for item in page for user in item["users"]]
    assert sorted(found) == sorted((kind, fan.id) for kind in ("like", "comment") for fan in fans[:4])
    assert max(map(len, pages)) == 2


def test_jobs_may_run_twice_and_late(two):
    one, fan = two
    media = one.take()
    like(fan, media)
    fan.follow(one)
    comment_id = int(say(fan, media, f"@{fan.username} @{one.username}"))
    settled(one, fan)
    before = one.get("users/self/activity")
    assert len(before) == 3
    for _ in range(2):
        jobs.liked(user_id=fan.id, owner_id=one.id, photo_id=photo_id(media["id"]))
        jobs.follow_changed(follower_id=fan.id, followee_id=one.id)
        activity.said(fan.id, one.id, photo_id(media["id"]), comment_id, "what it never said")
    assert one.get("users/self/activity") == before


def test_without_redis_it_comes_from_the_shard(two, stopped):
    one, fan = two
    fan.follow(one)
    settled(one, fan)
    stopped("redis_feeds")
    assert told(one) == [("follow", [fan.id])]


def test_a_copy_that_was_read_before_a_change_is_not_kept(two, monkeypatch):
    one, fan = two
    late = activity._from_shard

    def read_slowly(user_id, below):
        rows = late(user_id, below)
        if user_id == one.id and not changed:
            changed.append(True)
            fan.follow(one)
            settled(one, fan)
        return rows

    changed: list[bool] = []
    monkeypatch.setattr(activity, "_from_shard", read_slowly)
    assert activity.read(one.id, MAX_ID, 20) == ([], None)
    assert told(one) == [("follow", [fan.id])]
