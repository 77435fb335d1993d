import pytest
from django.conf import settings

from accounts import graph
from feeds import home, services
from photos.schemas import media_id
from photos.services import newest_of
from shardmap.redis_client import redis_client
from tests.support import eventually, photo_id, settled


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


def test_a_chunk_that_runs_twice_delivers_once(pair):
    one, follower = pair
    media = one.take()
    settled(one)
    for _ in range(2):
        services.push_chunk(one.id, photo_id(media["id"]), 0, 2**62)
        services.fan_out(one.id, photo_id(media["id"]))
    settled(one)
    assert follower.feed() == one.feed() == [media["id"]]


def test_a_chunk_that_comes_late_finds_its_place(pair):
    one, follower = pair
    media = [one.take() for _ in range(4)]
    settled(one)
    for late in (media[0], media[2], media[3]):
        home.remove([follower.id], entry_of(late))
    for late in (media[2], media[0], media[3], media[0]):
        services.push_chunk(one.id, photo_id(late["id"]), 0, 2**62)
    assert entries(follower) == sorted(entries(follower), reverse=True)
    assert follower.feed() == [one["id"] for one in media[::-1]]


def test_a_late_chunk_older_than_a_full_feed_is_not_kept(pair, monkeypatch):
    one, follower = pair
    media = [one.take() for _ in range(4)]
    settled(one)
    drop(follower)
    monkeypatch.setattr(home, "FEED_LENGTH", 2)
    services.read(follower.id, None, None, 1)
    services.push_chunk(one.id, photo_id(media[0]["id"]), 0, 2**62)
    assert [entry.lstrip("0") for entry in entries(follower)] == [media[3]["id"], media[2]["id"]]


def test_what_is_pushed_while_a_feed_is_rebuilt_is_in_it(pair):
    one, follower = pair
    old = one.take()
    settled(one)
    drop(follower)

    def read_and_meanwhile_a_photo_is_pushed(count: int) -> list[home.Entry]:
        found = newest_of([one.id, follower.id], None, count)
        new.append(one.take())
        settled(one)
        return found

    new = []
    home.rebuild(follower.id, read_and_meanwhile_a_photo_is_pushed)
    assert follower.feed() == [new[0]["id"], old["id"]]


def test_a_follow_during_a_rebuild_is_in_the_rebuilt_feed(pair, person):
    one, follower = pair
    third = person()
    media = third.take()
    settled(third)
    drop(follower)

    def read_and_meanwhile_follow(count: int) -> list[home.Entry]:
        found = newest_of([one.id, follower.id], None, count)
        follower.follow(third)
        settled(follower)
        return found

    home.rebuild(follower.id, read_and_meanwhile_follow)
    assert follower.feed() == [media["id"]]


def test_two_rebuilds_at_once_lose_nothing(pair):
    one, follower = pair
    drop(follower)

    def read_and_meanwhile_another_rebuild(count: int) -> list[home.Entry]:
        found = newest_of([one.id], None, count)
        home.rebuild(follower.id, lambda length: newest_of([one.id], None, length))
        media.append(one.take())
        settled(one)
        return found

    media = []
    home.rebuild(follower.id, read_and_meanwhile_another_rebuild)
    assert follower.feed() == [media[0]["id"]]


def test_a_rebuild_whose_note_was_lost_is_done_again(pair):
    _, follower = pair
    drop(follower)

    def read_and_meanwhile_redis_forgets(count: int) -> list[home.Entry]:
        drop(follower)
        redis_client(settings.REDIS_FEEDS_URL).delete(f"{home._key(follower.id)}:rebuilding")
        return []

    with pytest.raises(home.RebuildInterrupted):
        home.rebuild(follower.id, read_and_meanwhile_redis_forgets)
    assert entries(follower) == []


def test_a_chunk_queued_before_an_unfollow_is_not_shown(pair):
    one, follower = pair
    media = one.take()
    settled(one)
    follower.unfollow(one)
    settled(one, follower)
    home.push([follower.id], entry_of(media))  # what a chunk does that had read the followers before
    assert follower.feed() == []


def test_a_chunk_queued_before_a_block_is_not_shown(pair):
    one, follower = pair
    media = one.take()
    settled(one)
    one.block(follower)
    settled(one, follower)
    home.push([follower.id], entry_of(media))
    assert follower.feed() == []


def test_a_chunk_queued_before_a_delete_is_not_shown_and_swept_away(pair):
    one, follower = pair
    media, kept = one.take(), one.take()
    settled(one)
    one.delete(f"media/{media['id']}")
    settled(one)
    home.push([follower.id], entry_of(media))
    assert follower.feed() == [kept["id"]]
    assert len(entries(follower)) == 2  # what is left, and the end


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


def test_follow_and_unfollow_jobs_in_any_order_leave_the_feed_of_the_last_word(pair):
    one, follower = pair
    media = one.take()
    settled(one)
    for _ in range(2):
        graph.unfollow(follower.id, one.id)
        graph.follow(follower.id, one.id)
        for _ in range(2):
            services.follow_changed(follower.id, one.id)
    settled(one, follower)
    assert follower.feed() == [media["id"]]
    assert len(entries(follower)) == 2


def test_followers_are_reached_in_chunks(person, monkeypatch):
    one, followers = person(), [person() for _ in range(5)]
    for follower in followers:
        follower.follow(one)
    settled(one, *followers)
    assert all(follower.feed() == [] for follower in followers)
    monkeypatch.setattr(services, "CHUNK", 2)
    queued = []
    monkeypatch.setattr(services, "enqueue_many", lambda job, args: queued.extend((job, a) for a in args))
    media = one.take()
    settled(one)
    for follower in followers:
        home.remove([follower.id], entry_of(media))
    services.fan_out(one.id, photo_id(media["id"]))
    assert [job for job, _ in queued] == ["feeds.push_chunk"] * 3
    for _, args in queued:
        services.push_chunk(**args)
    assert all(follower.feed() == [media["id"]] for follower in followers)


@pytest.mark.parametrize("step", ["push", "enqueue_many"])
def test_a_crash_of_fan_out_is_made_good_by_the_next_try(pair, monkeypatch, step):
    one, follower = pair
    media = one.take()
    settled(one)
    for reader in (one, follower):
        home.remove([reader.id], entry_of(media))

    def crash(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(home if step == "push" else services, step, crash)
        with pytest.raises(KeyboardInterrupt):
            services.fan_out(*entry_of(media)[::-1])
    services.fan_out(*entry_of(media)[::-1])
    settled(one)
    assert follower.feed() == one.feed() == [media["id"]]


@pytest.mark.alone
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
