import pytest
from django.conf import settings

from feeds import popular
from shardmap.ids import first_id_at
from shardmap.redis_client import redis_client
from shardmap.shards import database_of, shard_of
from tests.instagram.test_round_trips import RoundTrips
from tests.support import photo_id, settled


def found(viewer) -> list[str]:
    return [media["id"] for media in viewer.get("media/popular", count=100)]


def like(one, media: dict) -> None:
    one.post(f"media/{media['id']}/likes")


@pytest.fixture(autouse=True)
def nothing_popular():
    """What other tests liked would fill the page."""
    redis_client(settings.REDIS_FEEDS_URL).delete(popular.KEY)


@pytest.fixture
def fans(person):
    return [person() for _ in range(3)]


def test_what_more_people_like_stands_higher(person, fans):
    one = person()
    little, much, nothing = (one.take() for _ in range(3))
    for fan in fans:
        like(fan, much)
    like(fans[0], little)
    settled(one, *fans)
    page = found(person())
    assert page.index(much["id"]) < page.index(little["id"])
    assert nothing["id"] not in page


def test_a_like_taken_back_takes_the_photo_off(person, fans):
    one = person()
    media = one.take()
    like(fans[0], media)
    settled(one, fans[0])
    assert media["id"] in found(one)
    fans[0].delete(f"media/{media['id']}/likes")
    settled(one, fans[0])
    assert media["id"] not in found(one)


def test_who_may_not_see_a_photo_does_not_find_it(person, fans):
    public, private, blocked = person(), person(), person()
    media = public.take()
    hidden = private.take()
    private.post("accounts/edit", is_private="true")
    for liked in (media, hidden):
        like(public if liked is media else private, liked)
    public.block(blocked)
    settled(public, private, blocked)
    assert media["id"] in found(fans[0])
    assert media["id"] not in found(blocked)
    assert hidden["id"] not in found(fans[0])
    public.delete(f"media/{media['id']}")
    assert media["id"] not in found(fans[0])
    settled(public)
    assert redis_client(settings.REDIS_FEEDS_URL).zscore(popular.KEY, media["id"]) is None


def test_the_job_may_run_twice(person, fans):
    one = person()
    media = one.take()
    like(fans[0], media)
    settled(one, fans[0])
    before = found(one)
    for _ in range(2):
        popular.rank(one.id, photo_id(media["id"]))
    assert found(one) == before


def test_what_is_newer_stands_higher_and_twelve_hours_weigh_as_much_as_ten_times_the_likes():
    now = 1_800_000_000
    half_a_day_ago = first_id_at(now - popular.SECONDS_FOR_TEN_TIMES)
    assert popular.score(first_id_at(now), 10) > popular.score(half_a_day_ago, 10)
    assert popular.score(first_id_at(now), 10) == pytest.approx(popular.score(half_a_day_ago, 100), abs=1e-4)
    assert popular.score(first_id_at(now), 11) > popular.score(half_a_day_ago, 100)


def test_only_the_most_popular_are_kept(person, fans, monkeypatch):
    one = person()
    media = [one.take() for _ in range(3)]
    monkeypatch.setattr(popular, "KEY", one.username)
    monkeypatch.setattr(popular, "KEPT", 2)
    for number, liked in enumerate(media):
        for fan in fans[number:]:
            like(fan, liked)
    settled(one, *fans)
    for liked in media:
        popular.rank(one.id, photo_id(liked["id"]))
    redis = redis_client(settings.REDIS_FEEDS_URL)
    assert redis.zrevrange(popular.KEY, 0, -1) == [liked["id"].encode() for liked in media[:2]]
    redis.delete(popular.KEY)


def test_a_like_costs_two_short_queries_and_little_else(person, fans):
    one = person()
    media = one.take()
    like(fans[0], media)
    settled(one, fans[0])
    popular.rank(one.id, photo_id(media["id"]))  # the owner is in the cache now
    with RoundTrips() as trips:
        popular.rank(one.id, photo_id(media["id"]))
    assert trips.counted.pop(database_of(shard_of(one.id))) == 2
    assert sum(trips.counted.values()) <= 3  # of Memcached and Redis


def test_a_photo_that_is_deleted_while_it_is_ranked_is_taken_off(person, fans, monkeypatch):
    one, read = person(), popular.likes_of
    media = one.take()
    like(fans[0], media)
    settled(one, fans[0])

    def read_and_meanwhile_the_photo_is_deleted(owner_id: int, photo_id: int) -> int:
        likes = read(owner_id, photo_id)
        if likes:
            one.delete(f"media/{media['id']}")
            settled(one)
        return likes

    monkeypatch.setattr(popular, "likes_of", read_and_meanwhile_the_photo_is_deleted)
    popular.rank(one.id, photo_id(media["id"]))
    assert redis_client(settings.REDIS_FEEDS_URL).zscore(popular.KEY, media["id"]) is None


def test_who_turned_private_is_on_it_for_nobody(person, fans):
    one = person()
    media = one.take()
    for fan in fans:
        fan.follow(one)
        like(fan, media)
    settled(one, *fans)
    assert media["id"] in found(fans[0])
    one.post("accounts/edit", is_private="true")
    assert not [viewer for viewer in (one, *fans) if media["id"] in found(viewer)]
    one.post("accounts/edit", is_private="false")
    assert media["id"] in found(fans[0])


def test_without_redis_the_page_is_empty_and_no_error(person, stopped):
    one = person()
    stopped("redis_feeds")
    assert found(one) == []
