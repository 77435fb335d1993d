import threading

import pytest
import requests

from photos import comments, likes
from photos.models import Comment, Like, Liked, Photo
from shardmap.shards import on_shard
from tests.support import Refused, eventually, photo_id, settled


def refused(call, *args, **kwargs) -> dict:
    with pytest.raises(Refused) as error:
        call(*args, **kwargs)
    return error.value.meta


def like(one, media: dict) -> None:
    one.post(f"media/{media['id']}/likes")


def unlike(one, media: dict) -> None:
    one.delete(f"media/{media['id']}/likes")


def say(one, media: dict, text: str) -> dict:
    return one.post(f"media/{media['id']}/comments", text=text)


def names(people: list[dict]) -> list[str]:
    return [one["username"] for one in people]


def texts(comments: list[dict]) -> list[str]:
    return [comment["text"] for comment in comments]


def at_once(*calls) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture
def scene(person):
    """An owner with a ready photo, and somebody else."""
    owner, other = person(), person()
    return owner, other, owner.take()


def test_a_like_is_seen_at_once_by_everybody(scene):
    owner, other, media = scene
    like(other, media)
    for viewer, has_liked in ((owner, False), (other, True)):
        shown = viewer.get(f"media/{media['id']}")
        assert shown["likes"]["count"] == 1
        assert names(shown["likes"]["data"]) == [other.username]
        assert shown["user_has_liked"] is has_liked
    assert names(owner.get(f"media/{media['id']}/likes")) == [other.username]
    assert [liked["id"] for liked in other.get("users/self/media/liked")] == [media["id"]]


def test_double_taps_count_once(scene):
    _, other, media = scene
    like(other, media)
    like(other, media)
    assert other.get(f"media/{media['id']}")["likes"]["count"] == 1
    unlike(other, media)
    unlike(other, media)
    shown = other.get(f"media/{media['id']}")
    assert (shown["likes"]["count"], shown["likes"]["data"], shown["user_has_liked"]) == (0, [], False)
    assert other.get("users/self/media/liked") == []


def test_the_four_latest_likers_are_shown(person, scene):
    owner, _, media = scene
    fans = [person() for _ in range(5)]
    for fan in fans:
        like(fan, media)
    shown = owner.get(f"media/{media['id']}")["likes"]
    assert shown["count"] == 5
    assert names(shown["data"]) == names_of(fans[:0:-1])
    page = owner.call("GET", f"media/{media['id']}/likes", params={"count": 2}).json()
    seen = names(page["data"])
    while page["pagination"]:
        page = requests.get(
            page["pagination"]["next_url"], headers={"Authorization": f"Bearer {owner.token}"}, timeout=10
        ).json()
        seen += names(page["data"])
    assert seen == names_of(fans[::-1])


def names_of(people: list) -> list[str]:
    return [one.username for one in people]


def test_liked_photos_come_latest_first_in_pages(person):
    owner, fan = person(), person()
    photos = [owner.publish() for _ in range(3)]
    settled(owner)
    for media in photos:
        like(fan, media)
    first = fan.call("GET", "users/self/media/liked", params={"count": 2}).json()
    assert [media["id"] for media in first["data"]] == [photos[2]["id"], photos[1]["id"]]
    rest = fan.get("users/self/media/liked", count=2, max_like_id=first["pagination"]["next_max_like_id"])
    assert [media["id"] for media in rest] == [photos[0]["id"]]


def test_twenty_threads_of_likes_and_unlikes_leave_the_count_equal_to_the_rows(person, scene):
    owner, _, media = scene
    fans = [person() for _ in range(5)]

    def tap(fan, n: int) -> None:
        for step in range(4):
            (like if (n + step) % 3 else unlike)(fan, media)

    at_once(*(lambda fan=fans[n % 5], n=n: tap(fan, n) for n in range(20)))
    settled(owner, *fans)
    with on_shard(owner.id):
        rows = set(Like.objects.filter(photo_id=photo_id(media["id"])).values_list("user_id", flat=True))
        assert Photo.objects.get(id=photo_id(media["id"])).likes == len(rows)
    for fan in fans:
        with on_shard(fan.id):
            assert Liked.objects.filter(user_id=fan.id).exists() == (fan.id in rows)
        assert fan.get(f"media/{media['id']}")["user_has_liked"] == (fan.id in rows)
    assert owner.get(f"media/{media['id']}")["likes"]["count"] == len(rows)


def test_a_comment_is_seen_at_once_by_everybody(scene):
    owner, other, media = scene
    said = say(other, media, "  Nice, é 🌅!  ")
    assert said["text"] == "Nice, é 🌅!"
    assert said["from"]["username"] == other.username
    assert said["created_time"].isdigit()
    for viewer in (owner, other):
        shown = viewer.get(f"media/{media['id']}")["comments"]
        assert shown == {"count": 1, "data": [said]}
        assert viewer.get(f"media/{media['id']}/comments") == [said]


def test_the_eight_latest_comments_are_shown_oldest_first_and_the_rest_in_pages(scene):
    owner, other, media = scene
    written = [f"number {n}" for n in range(10)]
    for text in written:
        say(other, media, text)
    shown = owner.get(f"media/{media['id']}")["comments"]
    assert shown["count"] == 10
    assert texts(shown["data"]) == written[2:]
    page = owner.call("GET", f"media/{media['id']}/comments", params={"count": 6}).json()
    assert texts(page["data"]) == written[4:]
    older = owner.get(f"media/{media['id']}/comments", count=6, cursor=page["pagination"]["next_cursor"])
    assert texts(older) == written[:4]


@pytest.mark.parametrize("text", ["", "   ", "x" * 301, "a\0b"])
def test_bad_comments_are_refused(scene, text):
    _, other, media = scene
    meta = refused(say, other, media, text)
    assert meta["error_type"] == "APIInvalidParametersError"
    assert "text" in meta["error_message"]
    assert other.get(f"media/{media['id']}")["comments"]["count"] == 0


def test_its_author_and_the_photos_owner_delete_a_comment_and_nobody_else(person, scene):
    owner, other, media = scene
    first, second = say(other, media, "one"), say(other, media, "two")
    meta = refused(person().delete, f"media/{media['id']}/comments/{first['id']}")
    assert meta["error_type"] == "APINotAllowedError"
    other.delete(f"media/{media['id']}/comments/{first['id']}")
    owner.delete(f"media/{media['id']}/comments/{second['id']}")
    assert owner.get(f"media/{media['id']}")["comments"] == {"count": 0, "data": []}
    assert refused(owner.delete, f"media/{media['id']}/comments/{first['id']}")["error_type"] == "APINotFoundError"


def test_a_comment_of_another_photo_is_not_found(scene):
    owner, other, media = scene
    said = say(other, media, "here")
    elsewhere = owner.take()
    meta = refused(owner.delete, f"media/{elsewhere['id']}/comments/{said['id']}")
    assert meta["error_type"] == "APINotFoundError"


def test_comments_and_deletes_from_many_connections_leave_the_count_equal_to_the_rows(scene):
    owner, other, media = scene

    def chat() -> None:
        for _ in range(3):
            said = say(other, media, "hello")
            say(other, media, "again")
            at_once(*[lambda s=said: other.call("DELETE", f"media/{media['id']}/comments/{s['id']}")] * 2)

    at_once(*[chat] * 5)
    with on_shard(owner.id):
        assert Comment.objects.filter(photo_id=photo_id(media["id"])).count() == 15
    assert owner.get(f"media/{media['id']}")["comments"]["count"] == 15


def test_what_is_deleted_or_in_the_making_cannot_be_liked_or_commented(scene, stopped):
    owner, other, media = scene
    like(other, media)
    say(other, media, "gone soon")
    owner.delete(f"media/{media['id']}")
    assert refused(like, other, media)["error_type"] == "APINotFoundError"
    assert refused(say, other, media, "late")["error_type"] == "APINotFoundError"
    assert other.get("users/self/media/liked") == []
    settled(owner, other)
    with on_shard(owner.id):
        assert not Like.objects.filter(photo_id=photo_id(media["id"])).exists()
        assert not Comment.objects.filter(photo_id=photo_id(media["id"])).exists()
    stopped("worker")
    unfinished = owner.publish()
    assert refused(like, owner, unfinished)["error_type"] == "APINotFoundError"
    assert refused(say, owner, unfinished, "soon")["error_type"] == "APINotFoundError"


def test_a_block_hides_likes_comments_and_photos_from_each_other(person, scene):
    owner, viewer, media = scene
    blocker = person()
    like(blocker, media)
    say(blocker, media, "hidden")
    blocker.block(viewer)
    shown = viewer.get(f"media/{media['id']}")
    assert (shown["likes"]["data"], shown["comments"]["data"]) == ([], [])
    assert viewer.get(f"media/{media['id']}/likes") == viewer.get(f"media/{media['id']}/comments") == []
    assert names(owner.get(f"media/{media['id']}/likes")) == [blocker.username]
    owner.block(viewer)
    for call in (lambda: like(viewer, media), lambda: say(viewer, media, "x")):
        assert refused(call)["error_type"] == "APINotAllowedError"


def test_a_photo_one_liked_is_not_listed_once_its_account_is_private(scene):
    owner, fan, media = scene
    like(fan, media)
    owner.post("accounts/edit", is_private="true")
    eventually(lambda: fan.get("users/self/media/liked") == [])


def test_a_crash_before_the_mirror_is_made_good_by_its_job(scene, monkeypatch):
    owner, fan, media = scene

    def crash(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(likes, "_mirror", crash)
    with pytest.raises(KeyboardInterrupt):
        likes.like(fan.id, photo_id(media["id"]), owner.id)
    settled(owner, fan)
    assert [liked["id"] for liked in fan.get("users/self/media/liked")] == [media["id"]]
    assert fan.get(f"media/{media['id']}")["user_has_liked"] is True


def test_what_is_under_a_deleted_photo_goes_some_at_a_time(person, monkeypatch):
    one, fans = person(), [person() for _ in range(2)]
    media = one.take()
    for fan in fans:
        like(fan, media)
        say(fan, media, "hello")
    settled(one, *fans)
    for part in (likes, comments):
        monkeypatch.setattr(part, "BURIED_A_JOB", 1)
        assert [part.bury_some_of(one.id, photo_id(media["id"])) for _ in range(3)] == [True, True, False]
    settled(one, *fans)
    for fan in fans:
        with on_shard(fan.id):
            assert not Liked.objects.filter(user_id=fan.id).exists()
