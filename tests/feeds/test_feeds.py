import pytest
from django.conf import settings

from accounts import graph
from accounts.models import Edge, Follower
from feeds import home, services
from photos.schemas import media_id
from shardmap.redis_client import redis_client
from shardmap.shards import on_shard
from tests.support import eventually, jobs_of, photo_id, settled


def entries(one) -> list[str]:
    """The feed as Redis has it."""
    return [entry.decode() for entry in redis_client(settings.REDIS_FEEDS_URL).lrange(home._key(one.id), 0, -1)]


def drop(one) -> None:
    redis_client(settings.REDIS_FEEDS_URL).delete(home._key(one.id))


def entry_of(media: dict) -> home.Entry:
    photo, owner = media["id"].split("_")
    return int(photo), int(owner)


@pytest.fixture
def pair(person):
    """Somebody, and a follower with a feed."""
    one, follower = person(), person()
    follower.follow(one)
    settled(one, follower)
    assert follower.feed() == []
    return one, follower


def test_a_photo_appears_in_its_followers_feed_and_in_ones_own(pair, person):
    one, follower = pair
    stranger = person()
    media = one.take()
    settled(one)
    assert follower.feed() == one.feed() == [media["id"]]
    assert stranger.feed() == []


def test_a_feed_is_newest_first_and_comes_in_pages(pair):
    one, follower = pair
    published = [media["id"] for media in ((one if n % 2 else follower).publish() for n in range(7))]
    settled(one, follower)
    assert follower.feed() == published[::-1]
    first = follower.call("GET", "users/self/feed", params={"count": 3}).json()
    assert [media["id"] for media in first["data"]] == published[:3:-1]
    assert first["pagination"]["next_max_id"] == published[4]
    assert follower.feed(count=3, max_id=published[4]) == published[1:4][::-1]
    assert follower.feed(min_id=published[4]) == published[:4:-1]
    last = follower.call("GET", "users/self/feed", params={"count": 3, "max_id": published[1]}).json()
    assert [media["id"] for media in last["data"]] == [published[0]]
    assert last["pagination"] == {}


def test_who_is_away_has_no_feed_and_gets_a_rebuilt_one(pair):
    one, follower = pair
    drop(follower)
    media = one.take()
    settled(one)
    assert entries(follower) == []
    assert follower.feed() == [media["id"]]
    assert len(entries(follower)) == 2  # the photo and the end


def test_pages_go_on_from_the_shards_where_the_feed_was_cut(pair, monkeypatch):
    one, follower = pair
    published = [one.publish()["id"] for _ in range(6)]
    settled(one, follower)
    drop(follower)
    monkeypatch.setattr(home, "FEED_LENGTH", 3)

    def read(max_id, count):
        return [media_id(photo) for photo in services.read(follower.id, max_id, None, count)]

    assert read(None, 2) == published[::-1][:2]
    assert len(entries(follower)) == 3
    assert read(photo_id(published[4]), 3) == published[::-1][2:5]  # one from Redis, two from the shards
    assert read(photo_id(published[1]), 3) == [published[0]]
    assert read(None, 100) == published[::-1]


def test_following_merges_photos_at_their_places_and_unfollowing_removes_them(person):
    one, other, follower = person(), person(), person()
    published = [media["id"] for media in ((one, other)[n % 2].publish() for n in range(6))]
    settled(one, other)
    follower.follow(one)
    settled(follower)
    assert follower.feed() == published[-2::-2]
    follower.follow(other)
    settled(follower)
    assert follower.feed() == published[::-1]
    follower.unfollow(one)
    assert follower.feed() == published[::-2]
    settled(follower)
    assert [entry for entry in entries(follower) if entry.endswith(f"_{one.id}")] == []


def test_a_follow_does_not_hide_what_is_below_a_cut_feed(person, monkeypatch):
    """A cut feed has lost some entries; old photos of a new followee must not come to stand right below the cut."""
    one, other, follower = person(), person(), person()
    follower.follow(one)
    oldest = other.publish()["id"]
    settled(follower, one, other)
    published = [one.publish()["id"] for _ in range(6)]
    settled(one)
    monkeypatch.setattr(home, "FEED_LENGTH", 4)
    services.read(follower.id, None, None, 1)
    one.delete(f"media/{published.pop()}")
    settled(one)
    graph.follow(follower.id, other.id)
    services.follow_changed(follower.id, other.id)
    settled(follower, other)
    seen, max_id = [], None
    while page := services.read(follower.id, max_id, None, 2):
        seen += [media_id(photo) for photo in page]
        max_id = page[-1]["id"]
    assert seen == [*published[::-1], oldest]


def test_deleting_takes_a_photo_out_of_all_feeds(pair):
    one, follower = pair
    media = one.take()
    settled(one)
    one.delete(f"media/{media['id']}")
    assert follower.feed() == one.feed() == []
    settled(one)
    assert entries(follower) == [home.END]


def test_pages_are_full_though_some_candidates_are_not_shown(pair, person):
    one, follower = pair
    third = person()
    follower.follow(third)
    settled(follower, third)
    mine = [one.publish()["id"] for _ in range(2)]
    hidden = [third.take() for _ in range(5)]
    mine += [one.publish()["id"]]
    settled(one, third)
    follower.unfollow(third)
    settled(follower, third)
    for media in hidden:
        home.push([follower.id], entry_of(media))
    assert follower.feed(count=3) == mine[::-1]


def test_many_chunks_of_one_account_do_not_keep_anothers_photo_waiting(pair, person, monkeypatch):
    one, follower = pair
    large = person()
    media = large.take()
    first = 10**12  # IDs that no user has
    with on_shard(large.id):
        Follower.objects.bulk_create(
            Follower(followee_id=large.id, follower_id=first + number, status=Edge.FOLLOWS, version=1)
            for number in range(1500)
        )
    monkeypatch.setattr(services, "CHUNK", 1)
    services.fan_out(*entry_of(media)[::-1])
    published = one.publish()
    eventually(lambda: follower.feed() == [published["id"]])
    assert len([row for row in jobs_of(large.id) if row.job == "feeds.push_chunk"]) > 100  # else none
    eventually(lambda: not jobs_of(large.id), 60)  # or the tests after this one wait for them


def test_redis_emptied_feeds_come_back_with_the_same_content(pair):
    one, follower = pair
    for _ in range(3):
        one.take()
    settled(one)
    before = follower.feed()
    assert len(before) == 3
    redis_client(settings.REDIS_FEEDS_URL).flushdb()
    assert follower.feed() == before
    media = one.take()
    settled(one)
    eventually(lambda: follower.feed() == [media["id"], *before])


def test_with_redis_dead_the_feed_is_right_and_photos_arrive_afterwards(pair, stopped):
    one, follower = pair
    first = one.take()
    settled(one)
    stopped("redis_feeds")
    second = one.take()
    assert follower.feed() == [second["id"], first["id"]]
    assert follower.feed(count=1, max_id=second["id"]) == [first["id"]]
