"""Redis whose master is killed, or hangs, while this process uses it: Sentinel makes its replica the master."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.conf import settings
from django.core.cache.backends.redis import RedisCache
from django.test import Client

from shardmap import photo_map, redis_client
from shardmap.redis_client import ask
from tests.redis_sentinel import NODES, Watched
from tests.support import Person, eventually

THREADS = 4


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    servers = Watched(tmp_path_factory.mktemp("sentinel"))
    yield servers
    servers.stop()


@pytest.mark.slow
def test_a_killed_master_is_replaced_while_feeds_are_read(watched, monkeypatch):
    url, (first, second) = watched.url("feeds"), NODES["feeds"]
    monkeypatch.setattr(settings, "REDIS_FEEDS_URL", url)
    client, one = redis_client.redis_client(url), Person()
    sessions = RedisCache([url], settings.CACHES["default"])

    def read_feed() -> None:
        response = Client().get("/v1/users/self/feed", {"access_token": one.token})
        assert response.status_code == 200, response.content

    def is_written() -> bool:
        read_feed()  # from the shards meanwhile
        return ask(client, [("SET", "after", "1")]) == [b"OK"]

    read_feed()
    sessions.set("session", {"user": one.id})
    eventually(lambda: watched.has_all(second, first), what="the replica has all that")
    watched.kill(first)
    killed = time.monotonic()
    eventually(is_written, 20, "what is written goes to the new master")
    assert time.monotonic() - killed < 15
    assert (watched.role(first), watched.role(second)) == (None, "master")
    assert client.get("after") == b"1"
    assert sessions.get("session") == {"user": one.id}
    read_feed()

    watched.start_node(first)  # it takes itself for the master, and nobody asks it
    ask(client, [("SET", "later", "1")])
    eventually(lambda: watched.role(first) == "slave", 30, "the old master is the replica")
    assert client.get("later") == b"1"


def test_a_hung_master_costs_each_thread_no_more_than_one_look(watched, monkeypatch):
    url, (first, second) = watched.url("shardmap"), NODES["shardmap"]
    monkeypatch.setattr(settings, "REDIS_SHARDMAP_URL", url)
    owner = settings.LOGICAL_SHARDS + 1
    photos = [5 << 49 | number << 23 | 1 << 10 for number in range(100)]
    asked = []

    def source(shard: int, wanted: list[int]) -> list[tuple[int, int]]:
        asked.extend(wanted)
        return [(photo, owner) for photo in wanted]

    monkeypatch.setattr(photo_map, "_source", source)
    for photo in photos:
        photo_map.remember(photo, owner)
    eventually(lambda: watched.has_all(second, first))
    everybody = dict.fromkeys(photos, owner)
    with ThreadPoolExecutor(THREADS) as pool:

        def each_looks() -> list[float]:
            """How long it took each of the threads; all of them find all owners, here or there."""

            def look(_: int) -> float:
                began = time.monotonic()
                assert photo_map.owners_of(photos) == everybody
                return time.monotonic() - began

            return list(pool.map(look, range(THREADS)))

        each_looks()  # with a connection of its own
        assert asked == []
        watched.signal(first, signal.SIGSTOP)
        try:
            waited = each_looks()
            assert asked, "Postgres was asked"
            eventually(lambda: watched.role(second) == "master", 20, "the replica is promoted")

            def is_back() -> bool:
                asked.clear()
                waited.extend(each_looks())
                return not asked

            eventually(is_back, 10, "the map is asked again")
            assert max(waited) < 3, waited
            asked.clear()
            assert max(each_looks()) < 1, "no thread waits for the old master any more"
            assert asked == []
        finally:
            watched.signal(first, signal.SIGCONT)


def test_without_a_sentinel_that_answers_nobody_waits_for_long(watched):
    url = f"redis+sentinel://:redis@127.0.0.1:{NODES['feeds'][0]}/feeds"  # a Redis, but no Sentinel
    began = time.monotonic()
    (reply,) = ask(redis_client.redis_client(url), [("PING",)])
    assert isinstance(reply, redis_client.Unavailable)
    assert time.monotonic() - began < 3
