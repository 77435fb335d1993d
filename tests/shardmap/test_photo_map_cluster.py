"""The map on a Redis Cluster of three nodes, and on one that grows or loses a node."""

import random
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from django.conf import settings
from django.core.management import CommandError, call_command
from redis.crc import key_slot

from shardmap import photo_map, redis_client
from shardmap.redis_client import Unavailable
from tests.redis_cluster import FIRST_PORT, RedisCluster
from tests.support import eventually

SHARDS = 4096
LOST = FIRST_PORT + 1
SPARE = FIRST_PORT + 3


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"), 3)
    cluster.add()
    yield cluster
    cluster.stop()


@pytest.fixture
def scratch():
    """The URL of an empty database on the map's own server."""
    return settings.REDIS_SHARDMAP_URL.rpartition("/")[0] + "/13"


@pytest.fixture
def cluster(started, monkeypatch):
    eventually(started.is_well, what="the cluster is well")
    monkeypatch.setattr(settings, "REDIS_SHARDMAP_URL", started.url)
    return started


@pytest.fixture
def owners(monkeypatch):
    """Photos of all the shards that a production has, which are the truth meanwhile: {photo: owner}."""
    monkeypatch.setattr(settings, "LOGICAL_SHARDS", SHARDS)
    numbers = random.Random(1)
    made = {}
    for number in range(3 * SHARDS):
        shard = number % SHARDS
        photo = (5 << 26 | numbers.getrandbits(26)) << 23 | shard << 10 | number % 7 // 6
        made[photo] = numbers.randrange(3000) * SHARDS + shard
    of_shard: dict[int, list[int]] = {}
    for photo in sorted(made):
        of_shard.setdefault(photo >> 10 & SHARDS - 1, []).append(photo)

    def source(shard, photos):
        return [(photo, made[photo]) for photo in photos or of_shard[shard]]

    monkeypatch.setattr(photo_map, "_source", source)
    return made


def node_of(photo, cluster) -> int:
    return redis_client.redis_client(cluster.url).get_node_from_key(f"{{{photo >> 10 & SHARDS - 1}}}").port


def contents(url: str) -> dict[bytes, bytes]:
    """Every key, and its value byte for byte as Redis stores it."""
    found = {}
    for node in redis_client.nodes(redis_client.redis_client(url)).values():
        keys = sorted(node.keys("owners:*"))
        values = redis_client.ask(node, [("DUMP", key) for key in keys])
        found |= dict(zip(keys, values, strict=True))
    return found


def test_a_server_and_a_cluster_hold_the_same_keys_byte_for_byte(scratch, cluster, owners, monkeypatch):
    photo_map._write(owners)
    server = redis_client.redis_client(scratch)
    monkeypatch.setattr(settings, "REDIS_SHARDMAP_URL", scratch)
    try:
        photo_map._write(owners)
        assert contents(scratch) == contents(cluster.url)
        assert server.dbsize() == SHARDS
    finally:
        server.flushdb()


def test_the_whole_map_works_on_a_cluster(cluster, owners, monkeypatch, capsys):
    cluster.empty()
    some, others = list(owners)[:50], list(owners)[50:]
    for photo in some:
        photo_map.remember(photo, owners[photo])
    assert photo_map.owners_of(others) == {photo: owners[photo] for photo in others}  # found, and noted
    with monkeypatch.context() as context:
        context.setattr(photo_map, "_source", None)
        assert photo_map.owners_of(owners) == owners

    gone = owners.popitem()[0]
    photo_map.forget(gone)
    monkeypatch.setattr(photo_map, "_source", lambda shard, photos: [])
    assert photo_map.owner_of(gone) is None

    call_command("shardmap", "status")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["hashes", f"{SHARDS:,}"]
    assert sum(line.startswith("node") for line in lines) == 3


def test_a_rebuild_fills_all_nodes(cluster, owners, monkeypatch):
    cluster.empty()
    assert photo_map.rebuild(lambda shards, photos: None) == len(owners)
    monkeypatch.setattr(photo_map, "_source", None)
    assert photo_map.owners_of(owners) == owners


def test_a_rebuild_stops_at_a_full_node_and_says_so_while_lookups_go_on(cluster, owners):
    cluster.empty()
    cluster.nodes[LOST].config_set("maxmemory", "1")
    try:
        with pytest.raises(CommandError, match="maxmemory"):
            call_command("shardmap", "rebuild")
        assert photo_map.owners_of(owners) == owners
    finally:
        cluster.nodes[LOST].config_set("maxmemory", "0")


def test_a_new_node_takes_its_share_and_no_more_while_lookups_go_on(cluster, owners, monkeypatch):
    photo_map._write(owners)
    before = {port: set(node.keys("*")) for port, node in cluster.nodes.items()}
    assert not before[SPARE]
    monkeypatch.setattr(photo_map, "_source", None)  # asking the shards would raise
    asked = Counter()
    photos = list(owners)
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(cluster.move_slots, 200, FIRST_PORT, SPARE)
        while not moving.done() or asked["since"] < 20:
            wanted = random.sample(photos, 200)
            assert photo_map.owners_of(wanted) == {photo: owners[photo] for photo in wanted}
            asked["since" if moving.done() else "meanwhile"] += 1
        moving.result()
    after = {port: set(node.keys("*")) for port, node in cluster.nodes.items()}
    assert asked["meanwhile"]
    assert after[SPARE] == {key for key in before[FIRST_PORT] if key_slot(key.encode()) < 200}
    assert after[FIRST_PORT] == before[FIRST_PORT] - after[SPARE]
    assert all(after[port] == before[port] for port in (LOST, FIRST_PORT + 2))
    assert photo_map.owners_of(owners) == owners


def test_a_silent_node_is_waited_for_once_and_its_photos_come_from_the_shards(cluster, owners, monkeypatch):
    photo_map._write(owners)
    monkeypatch.setattr(redis_client, "SECONDS_DOWN", 3600)
    asked = Counter()
    receive = redis_client.Connection.receive

    def counting(connection, count):
        asked[connection.port] += 1
        return receive(connection, count)

    monkeypatch.setattr(redis_client.Connection, "receive", counting)
    wanted = list(owners)
    cluster.signal(LOST, signal.SIGSTOP)
    try:
        for _ in range(5):
            assert photo_map.owners_of(wanted) == owners
    finally:
        for server in redis_client._servers.values():
            server.answered()
        cluster.signal(LOST, signal.SIGCONT)
    assert asked[LOST] == 1
    assert asked[FIRST_PORT] >= 5


def test_slots_that_are_not_known_are_asked_for(cluster, owners, monkeypatch):
    photo_map._write(owners)
    client = redis_client.redis_client(cluster.url)
    monkeypatch.setattr(client, "refreshed", float("-inf"))
    client.nodes_manager.slots_cache.clear()  # as after a start while nodes were lost
    assert photo_map.owners_of(owners) == owners
    monkeypatch.setattr(photo_map, "_source", None)  # asking the shards would raise
    assert photo_map.owners_of(owners) == owners


def test_the_status_names_a_node_that_is_lost_while_it_is_looked_at(cluster, owners, monkeypatch, capsys):
    photo_map._write(owners)
    dbsize = redis.Redis.dbsize

    def killed_then(node):
        size = dbsize(node)
        if node.connection_pool.connection_kwargs["port"] == LOST:
            cluster.kill(LOST)
        return size

    monkeypatch.setattr(redis.Redis, "dbsize", killed_then)
    try:
        call_command("shardmap", "status")
    finally:
        cluster.start(LOST)
    output = capsys.readouterr().out
    assert f":{LOST} is away" in output
    assert f":{FIRST_PORT}: " in output


def test_without_a_node_its_photos_come_from_the_shards_and_the_others_from_redis(cluster, owners, capsys):
    photo_map._write(owners)
    cluster.kill(LOST)
    from_shards = []
    truth = photo_map._source
    photo_map.use_source(lambda shard, photos: from_shards.extend(photos) or truth(shard, photos))
    try:
        assert photo_map.owners_of(owners) == owners
        assert set(from_shards) == {photo for photo in owners if node_of(photo, cluster) == LOST}
        with pytest.raises(Unavailable):
            photo_map.forget(from_shards[0])
        call_command("shardmap", "status")
        assert f":{LOST} is away" in capsys.readouterr().out
    finally:
        cluster.start(LOST)
    eventually(cluster.is_well, what="the node is back")
    from_shards.clear()
    assert photo_map.owners_of(owners) == owners
    assert not from_shards  # it had kept what it knew
