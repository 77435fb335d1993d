"""A feed that was lost comes back as it was: what a rebuild reads from the shards is what had been pushed."""

import random

import pytest
from django.conf import settings

from feeds import home, services
from photos import services as photos
from photos.models import Photo, Status
from photos.services import newest_of
from shardmap.ids import MAX_ID
from shardmap.redis_client import redis_client
from shardmap.shards import ShardMoved, database_of, on_shard, shard_of
from tests.feeds.test_feeds import drop, entries, entry_of
from tests.instagram.test_round_trips import RoundTrips
from tests.support import Person, eventually, settled

FIRST_OWNER = 2**40  # of those in these tests who have photos, but no account


def redis():
    return redis_client(settings.REDIS_FEEDS_URL)


def people_in_all_shards() -> list[Person]:
    people = []
    while {shard_of(one.id) for one in people} != set(range(settings.LOGICAL_SHARDS)):
        people.append(Person())
    return people


@pytest.fixture
def away(person):
    """A function that makes a feed go as it does when its reader stays away."""

    def expire(one: Person) -> None:
        assert redis().pexpire(home._key(one.id), 1)
        eventually(lambda: not redis().exists(home._key(one.id)))

    return expire


@pytest.fixture
def owners():
    """A few dozen in all shards, each with some photos; (photo, owner) of all, newest first."""
    owner_ids = [FIRST_OWNER + n for n in range(3 * settings.LOGICAL_SHARDS)]
    made = []
    for n, owner_id in enumerate(random.sample(owner_ids * 4, 4 * len(owner_ids))):
        with on_shard(owner_id):
            status = Status.READY if n % 5 else Status.DELETED
            photo = Photo.objects.create(owner_id=owner_id, upload_id=f"{n}", status=status)
        made += [(photo.id, owner_id)] if n % 5 else []
    yield sorted(made, reverse=True)
    for owner_id in owner_ids:
        with on_shard(owner_id):
            Photo.objects.filter(owner_id=owner_id).delete()


def test_a_rebuilt_feed_is_the_pushed_one(person, away):
    reader, people = person(), people_in_all_shards()
    for one in people:
        reader.follow(one)
    settled(reader, *people)
    assert reader.feed() == []
    unfollowed, blocking, returned, *_ = people
    before = [one.publish() for one in (*people, reader)]
    settled(reader, *people)
    for one, media in zip(people[3:5], before[3:5], strict=True):
        one.delete(f"media/{media['id']}")
    for one in (unfollowed, returned):
        reader.unfollow(one)
    blocking.block(reader)
    settled(reader, *people)  # else a photo may be on its way to one who was a follower a moment ago
    after = [one.publish() for one in (*people, reader)]
    settled(reader, *people)
    reader.follow(returned)
    settled(reader, *people)
    pushed, shown = entries(reader), reader.feed(count=100)
    gone = {unfollowed.id, blocking.id}
    left = [media for media in (*before[:3], *before[5:], *after) if entry_of(media)[1] not in gone]
    assert shown == sorted((media["id"] for media in left), key=lambda text: int(text.split("_")[0]), reverse=True)
    assert [entry.lstrip("0") for entry in pushed] == [*shown, "_0"]
    drop(reader)
    assert reader.feed(count=100) == shown
    assert entries(reader) == pushed
    away(reader)
    assert reader.feed(count=100) == shown
    assert entries(reader) == pushed


def test_a_rebuilt_feed_is_cut_where_the_pushed_one_was(person, away, monkeypatch):
    reader, people = person(), [person() for _ in range(3)]
    for one in people:
        reader.follow(one)
    settled(reader, *people)
    media = [people[n % 3].publish() for n in range(7)]
    settled(reader, *people)
    monkeypatch.setattr(home, "FEED_LENGTH", 5)
    home.rebuild(reader.id, lambda length: [])
    for one in media:
        home.push([reader.id], entry_of(one))
    pushed = entries(reader)
    assert [entry.lstrip("0") for entry in pushed] == [one["id"] for one in media[:1:-1]]
    away(reader)
    assert len(services.read(reader.id, None, None, 3)) == 3
    assert entries(reader) == pushed
    assert [photo["id"] for photo in services.read(reader.id, None, None, 100)] == [
        entry_of(one)[0] for one in media[::-1]
    ]


def test_a_feed_lives_as_long_as_it_is_read(person):
    reader = person()
    reader.feed()
    key = home._key(reader.id)
    assert home.FEED_SECONDS - 60 < redis().ttl(key) <= home.FEED_SECONDS
    redis().expire(key, 100)
    reader.publish()
    settled(reader)
    assert len(entries(reader)) == 2
    assert redis().ttl(key) <= 100  # a push does not keep it alive
    reader.feed()
    assert redis().ttl(key) > home.FEED_SECONDS - 60


@pytest.mark.parametrize("followees", [1, 3])
def test_each_database_is_asked_once_however_many_are_followed(followees):
    followed = range(FIRST_OWNER, FIRST_OWNER + followees * settings.LOGICAL_SHARDS)
    with RoundTrips() as trips:
        newest_of(followed, None, home.FEED_LENGTH)
    assert trips.counted == dict.fromkeys(settings.SHARD_SERVERS, 1)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_the_newest_photos_of_many(owners, count):
    owner_ids = {owner_id for _, owner_id in owners}
    assert newest_of(owner_ids, None, count) == owners[:count]
    middle = owners[len(owners) // 2][0]
    assert newest_of(owner_ids, middle, count) == [entry for entry in owners if entry[0] < middle][:count]
    some = set(random.sample(sorted(owner_ids), 5))
    assert newest_of(some, MAX_ID, count) == [entry for entry in owners if entry[1] in some][:count]
    assert newest_of([], None, count) == []


def test_a_shard_that_has_moved_is_told_of(monkeypatch):
    """Then who asked reads the directory anew, and asks again."""
    a, b = settings.SHARD_SERVERS[:2]
    elsewhere = {a: b, b: a}[database_of(shard_of(FIRST_OWNER))]
    monkeypatch.setattr(photos, "shards_by_database", lambda shards: {elsewhere: list(shards)})
    with pytest.raises(ShardMoved) as moved:
        newest_of([FIRST_OWNER], None, 1)
    assert moved.value.shard == shard_of(FIRST_OWNER)
