"""What may cross a fan-out, on one Redis and on a cluster: the jobs are done here, on a Redis of the test's own."""

import pytest
from django.conf import settings
from django.test import Client

from accounts import graph
from accounts.models import Edge
from feeds import activity, home, popular, services
from photos import services as photos_services
from photos.cached import MEDIA
from photos.schemas import media_id
from photos.services import newest_of
from shardmap import cache, copies
from shardmap.ids import MAX_ID
from shardmap.redis_client import redis_client
from tests.redis_cluster import RedisCluster
from tests.support import photo_id, settled


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"), 3)
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True, params=["one Redis", "a cluster"])
def redis(request, monkeypatch):
    if request.param == "a cluster":
        url = request.getfixturevalue("cluster").url
    else:
        url = settings.REDIS_FEEDS_URL.rpartition("/")[0] + "/13"
    monkeypatch.setattr(settings, "REDIS_FEEDS_URL", url)
    monkeypatch.setattr(copies, "MOST_BYTES", 0)  # the site tells its changes to another Redis
    return redis_client(url)


@pytest.fixture
def pair(person):
    """Somebody, and a follower with a feed."""
    one, follower = person(), person()
    follower.follow(one)
    settled(one, follower)
    assert shown(follower) == shown(one) == []
    return one, follower


def shown(one) -> list[str]:
    """The IDs of the media in the home feed."""
    return [media_id(photo) for photo in services.read(one.id, None, None, 100)]


def entries(one) -> list[str]:
    """The feed as Redis has it, without the end."""
    found = redis_client(settings.REDIS_FEEDS_URL).lrange(home._key(one.id), 0, -1)
    return [entry.decode() for entry in found if entry.decode() != home.END]


def take(one) -> dict:
    """A photo that is ready, and in no feed here."""
    media = one.take()
    settled(one)
    return media


def deliver(*published: dict) -> None:
    for media in published:
        services.fan_out(*entry_of(media)[::-1])


def push_chunk(media: dict) -> None:
    photo, owner = entry_of(media)
    services.push_chunk(owner, photo, 0, MAX_ID)


def entry_of(media: dict) -> home.Entry:
    photo, owner = media["id"].split("_")
    return int(photo), int(owner)


def ids(*published: dict) -> list[str]:
    return [media["id"] for media in published]


def test_a_photo_is_pushed_and_removed(pair, person):
    one, follower = pair
    stranger = person()
    assert shown(stranger) == []
    media = take(one)
    deliver(media)
    assert len(entries(follower)) == len(entries(one)) == 1
    assert shown(follower) == shown(one) == ids(media)
    assert entries(stranger) == []
    services.remove_photo(*entry_of(media)[::-1])
    assert entries(follower) == entries(one) == []


def test_a_chunk_that_runs_twice_delivers_once(pair):
    one, follower = pair
    media = take(one)
    for _ in range(2):
        push_chunk(media)
        deliver(media)
    assert shown(follower) == shown(one) == ids(media)
    assert len(entries(follower)) == len(entries(one)) == 1


def test_a_chunk_that_comes_late_finds_its_place(pair):
    one, follower = pair
    media = [take(one) for _ in range(4)]
    deliver(*media)
    for late in (media[0], media[2], media[3]):
        home.remove([follower.id], entry_of(late))
    for late in (media[2], media[0], media[3], media[0]):
        push_chunk(late)
    assert entries(follower) == sorted(entries(follower), reverse=True)
    assert shown(follower) == ids(*media[::-1])


def test_a_full_feed_drops_its_oldest(pair, monkeypatch):
    one, follower = pair
    media = [take(one) for _ in range(4)]
    home.drop(follower.id)
    monkeypatch.setattr(home, "FEED_LENGTH", 2)
    services.read(follower.id, None, None, 1)
    home.remove([follower.id], entry_of(media[3]))
    deliver(media[3], media[0])
    assert [entry.lstrip("0") for entry in entries(follower)] == ids(media[3], media[2])
    newest = take(one)
    deliver(newest)
    assert [entry.lstrip("0") for entry in entries(follower)] == ids(newest, media[3])


def rebuild_while_a_photo_is_pushed(one, follower) -> list[dict]:
    """Returns the photo."""
    new = []

    def read_and_meanwhile_push(count: int) -> list[home.Entry]:
        found = newest_of([one.id, follower.id], None, count)
        new.append(take(one))
        deliver(*new)
        return found

    home.rebuild(follower.id, read_and_meanwhile_push)
    return new


def test_what_is_pushed_while_a_feed_is_rebuilt_is_in_it(pair):
    one, follower = pair
    old = take(one)
    home.drop(follower.id)
    new = rebuild_while_a_photo_is_pushed(one, follower)
    assert shown(follower) == ids(*new, old)


def test_what_is_pushed_into_a_feed_that_is_rebuilt_once_more_stays_in_it(pair):
    one, follower = pair
    new = rebuild_while_a_photo_is_pushed(one, follower)
    assert shown(follower) == ids(*new)


def test_a_follow_during_a_rebuild_is_in_the_rebuilt_feed(pair, person):
    one, follower = pair
    third = person()
    media = take(third)
    home.drop(follower.id)

    def read_and_meanwhile_follow(count: int) -> list[home.Entry]:
        found = newest_of([one.id, follower.id], None, count)
        follower.follow(third)
        services.follow_changed(follower.id, third.id)
        return found

    home.rebuild(follower.id, read_and_meanwhile_follow)
    assert shown(follower) == ids(media)


def test_two_rebuilds_at_once_lose_nothing(pair):
    one, follower = pair
    home.drop(follower.id)

    def read_and_meanwhile_another_rebuild(count: int) -> list[home.Entry]:
        found = newest_of([one.id], None, count)
        home.rebuild(follower.id, lambda length: newest_of([one.id], None, length))
        media.append(take(one))
        deliver(*media)
        return found

    media = []
    home.rebuild(follower.id, read_and_meanwhile_another_rebuild)
    assert shown(follower) == ids(*media)


def test_a_rebuild_whose_note_was_lost_is_done_again(pair, redis):
    _, follower = pair
    home.drop(follower.id)

    def read_and_meanwhile_redis_forgets(count: int) -> list[home.Entry]:
        home.drop(follower.id)
        redis.delete(f"{home._key(follower.id)}:rebuilding")
        return []

    with pytest.raises(home.RebuildInterrupted):
        home.rebuild(follower.id, read_and_meanwhile_redis_forgets)
    assert not redis.exists(home._key(follower.id))


def test_a_node_that_has_forgotten_all_scripts_is_no_error(pair, redis):
    one, follower = pair
    media = take(one)
    redis.script_flush()
    deliver(media)
    assert shown(follower) == ids(media)


def test_a_chunk_queued_before_an_unfollow_is_not_shown(pair):
    one, follower = pair
    media = take(one)
    follower.unfollow(one)
    services.follow_changed(follower.id, one.id)
    home.push([follower.id], entry_of(media))  # what a chunk does that had read the followers before
    assert shown(follower) == []


def test_a_chunk_queued_before_a_block_is_not_shown(pair):
    one, follower = pair
    media = take(one)
    one.block(follower)
    settled(one, follower)
    home.push([follower.id], entry_of(media))
    assert shown(follower) == []


def test_a_chunk_queued_before_a_delete_is_not_shown_and_swept_away(pair):
    one, follower = pair
    media, kept = take(one), take(one)
    deliver(media, kept)
    one.delete(f"media/{media['id']}")
    services.remove_photo(*entry_of(media)[::-1])
    push_chunk(media)  # of a photo that is gone
    assert len(entries(follower)) == 1
    settled(one)
    home.push([follower.id], entry_of(media))  # by one that had looked before
    assert shown(follower) == ids(kept)
    assert len(entries(follower)) == 1


@pytest.fixture
def meanwhile(monkeypatch):
    """A function that lets something happen between a chunk's reading of its followers and its push."""

    def use(happens) -> None:
        def read(*chunk):
            found = read_followers(*chunk)
            happens()
            return found

        monkeypatch.setattr(graph, "followers_between", read)

    read_followers = graph.followers_between
    return use


def test_who_is_let_in_between_a_chunks_reading_and_its_push_gets_the_photo(person, meanwhile):
    private, friend, asking = person(), person(), person()
    friend.follow(private)
    settled(private, friend)
    private.post("accounts/edit", is_private="true")
    asking.follow(private)
    settled(private, asking)
    media = take(private)
    assert shown(asking) == []

    def let_in() -> None:
        graph.approve(private.id, asking.id)
        settled(private, asking)
        services.follow_changed(asking.id, private.id)

    deliver(media)
    assert entries(asking) == []  # has but asked
    meanwhile(let_in)
    deliver(media)
    assert shown(asking) == ids(media)


def test_who_follows_between_a_chunks_reading_and_its_push_gets_the_photo(pair, person, meanwhile):
    one, follower = pair
    third = person()
    assert shown(third) == []
    media = take(one)

    def follow() -> None:
        third.follow(one)
        settled(one, third)
        services.follow_changed(third.id, one.id)

    meanwhile(follow)
    deliver(media)
    assert shown(follower) == shown(third) == ids(media)
    assert len(entries(third)) == 1


@pytest.mark.parametrize("happens", ["an unfollow", "a block", "being removed"])
def test_who_is_gone_between_a_chunks_reading_and_its_push_is_not_shown_the_photo(pair, meanwhile, happens):
    one, follower = pair
    media = take(one)

    def end() -> None:
        if happens == "an unfollow":
            graph.unfollow(follower.id, one.id)
        elif happens == "a block":
            graph.block(follower.id, one.id)
        else:
            graph.block(one.id, follower.id)
            graph.unblock(one.id, follower.id)
        services.follow_changed(follower.id, one.id)

    meanwhile(end)
    deliver(media)
    assert len(entries(follower)) == 1  # the chunk had it on its list
    assert shown(follower) == []
    settled(one, follower)
    if happens == "being removed":
        graph.follow(follower.id, one.id)
        services.follow_changed(follower.id, one.id)
        assert shown(follower) == ids(media)


def test_who_follows_again_between_the_cut_and_a_chunk_gets_the_photo(pair, monkeypatch):
    """Such a follower has left the range of every chunk but the last."""
    one, follower = pair
    media = take(one)
    ((first, _),) = graph.follower_chunks(one.id, 10)
    graph.unfollow(follower.id, one.id)
    settled(one, follower)
    graph.follow(follower.id, one.id)
    settled(one, follower)
    assert graph.followers_between(one.id, first, first) == []
    services.follow_changed(follower.id, one.id)
    services.push_chunk(*entry_of(media)[::-1], first, first)
    assert shown(follower) == ids(media)


def test_follow_and_unfollow_jobs_in_any_order_leave_the_feed_of_the_last_word(pair):
    one, follower = pair
    media = take(one)
    for last_word in (graph.unfollow, graph.follow):
        graph.unfollow(follower.id, one.id)
        graph.follow(follower.id, one.id)
        last_word(follower.id, one.id)
        for _ in range(2):
            services.follow_changed(follower.id, one.id)
        assert len(entries(follower)) == graph.follows(follower.id, one.id)[0]
    assert shown(follower) == ids(media)
    settled(one, follower)


def test_followers_are_reached_in_chunks(person, monkeypatch):
    one, followers = person(), [person() for _ in range(5)]
    for follower in followers:
        follower.follow(one)
    settled(one, *followers)
    assert all(shown(follower) == [] for follower in followers)
    media = take(one)
    monkeypatch.setattr(services, "CHUNK", 2)
    queued = []
    monkeypatch.setattr(services, "enqueue_many", lambda job, args: queued.extend((job, a) for a in args))
    deliver(media)
    assert [job for job, _ in queued] == ["feeds.push_chunk"] * 2  # the first was reached at once
    assert sorted(len(entries(follower)) for follower in followers) == [0, 0, 0, 1, 1]
    for _, args in queued:
        services.push_chunk(**args)
    assert all(entries(follower) == [home._text(entry_of(media))] for follower in followers)
    assert all(shown(follower) == ids(media) for follower in followers)


def test_chunks_hold_each_follower_once_and_nobody_who_has_but_asked(person):
    one, *others = (person() for _ in range(5))
    assert graph.follower_chunks(one.id, 2) == []
    for other in others[:3]:
        other.follow(one)
    one.post("accounts/edit", is_private="true")
    others[3].follow(one)
    settled(one, *others)
    assert graph.status_seen_by_followee(others[3].id, one.id) == Edge.REQUESTED
    chunks = graph.follower_chunks(one.id, 2)
    found = [graph.followers_between(one.id, *chunk) for chunk in chunks]
    assert [len(chunk) for chunk in found] == [2, 1]
    assert {follower for chunk in found for follower in chunk} == {other.id for other in others[:3]}


@pytest.mark.parametrize("step", ["push", "enqueue_many"])
def test_a_crash_of_fan_out_is_made_good_by_the_next_try(pair, monkeypatch, step):
    one, follower = pair
    media = take(one)

    def crash(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(home if step == "push" else services, step, crash)
        with pytest.raises(KeyboardInterrupt):
            deliver(media)
    deliver(media)
    assert shown(follower) == shown(one) == ids(media)


def test_popular_and_the_copy_of_the_activity_run_there_too(pair, redis):
    one, fan = pair
    media = take(one)
    fan.post(f"media/{media['id']}/likes")
    settled(one, fan)
    photo, owner = entry_of(media)
    popular.rank(owner, photo)
    assert media["id"] in [media_id(found) for found in popular.popular(None, 500)]
    activity.set_like(fan.id, owner, photo, True)
    for _ in range(2):
        groups, _ = activity.read(one.id, MAX_ID, 10)
        assert fan.id in [actor["id"] for group in groups for actor in group["actors"]]
    assert redis.get(activity._key(one.id)).startswith(b"[[")


def test_the_api_counts_requests_and_hears_of_changes_there(pair, monkeypatch):
    one, follower = pair
    media = take(one)
    deliver(media)
    monkeypatch.setattr(copies, "MOST_BYTES", 1 << 20)
    left = []
    for _ in range(4):
        response = Client().get("/v1/users/self/feed", {"access_token": follower.token})
        assert [shown["id"] for shown in response.json()["data"]] == [media["id"]]
        left.append(int(response["X-Ratelimit-Remaining"]))
    assert left == list(range(left[0], left[0] - 4, -1))
    assert cache.glimpse(MEDIA, photo_id(media["id"]))
    photos_services.edit_caption(one.id, photo_id(media["id"]), one.id, "changed")
    response = Client().get("/v1/users/self/feed", {"access_token": follower.token})
    assert response.json()["data"][0]["caption"]["text"] == "changed"
