"""Snapshots of the map in S3, of whatever the map is in (docs/backups.md)."""

import os
import subprocess
from pathlib import Path

import pytest
import redis
from botocore.exceptions import ClientError

from deploy.local.layout import Stack
from deploy.redis_snapshots import Bucket, Snapshot, fetch, take
from shardmap.redis_client import Unavailable
from tests.redis_cluster import FIRST_PORT, RedisCluster
from tests.redis_sentinel import NODES, Watched
from tests.support import eventually


@pytest.fixture(scope="module")
def bucket() -> Bucket:
    stack = Stack(os.environ["STACK"])
    stack.load_secrets()
    return Bucket(stack.snapshots_environment())


def keys_in(file: Path) -> set[bytes]:
    """What a Redis has that starts from the snapshot."""
    socket = file.with_suffix(".socket")
    command = ["redis-server", "--port", "0", "--unixsocket", socket, "--dir", file.parent, "--dbfilename", file.name]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(unix_socket_path=str(socket)) as client:
            eventually(lambda: socket.exists() and answers(client), what="the snapshot is loaded")
            return set(client.keys())
    finally:
        process.kill()
        process.wait(10)


def answers(client: redis.Redis) -> bool:
    try:
        return client.ping()
    except redis.RedisError:
        return False


def test_of_a_cluster_each_node_has_one(bucket, tmp_path):
    cluster = RedisCluster(tmp_path, 2)
    try:
        written = {f"key {number}".encode() for number in range(100)}
        client = redis.RedisCluster(host="127.0.0.1", port=FIRST_PORT, password="redis")
        for key in written:
            client.set(key, "1")
        client.close()
        taken = take(cluster.url, bucket)
    finally:
        cluster.stop()
    assert [int(one.key.removesuffix(".rdb").rpartition("-")[2]) for one in taken] == [FIRST_PORT, FIRST_PORT + 1]
    found = []
    for number, snapshot in enumerate(taken):
        fetch(snapshot.key, bucket, tmp_path / f"{number}.rdb")
        found.append(keys_in(tmp_path / f"{number}.rdb"))
    assert all(found)
    assert found[0] | found[1] == written
    assert not found[0] & found[1]


def test_of_a_pair_it_is_the_replicas_or_that_of_a_master_who_has_none(bucket, tmp_path):
    servers, (first, second) = Watched(tmp_path), NODES["shardmap"]
    try:
        servers.ask(first, "SET", "before", "1")
        eventually(lambda: servers.has_all(second, first))
        (of_replica,) = take(servers.url("shardmap"), bucket)
        servers.kill(first)
        (taken,) = eventually(lambda: taken_by(servers.url("shardmap"), bucket), 20, "there is a master again")
    finally:
        servers.stop()
    assert taken != of_replica
    for number, snapshot in enumerate((of_replica, taken)):
        assert snapshot.key.endswith(f"-{second}.rdb")
        fetch(snapshot.key, bucket, tmp_path / f"{number}.rdb")
        assert keys_in(tmp_path / f"{number}.rdb") == {b"before"}


def taken_by(url: str, bucket: Bucket) -> list[Snapshot]:
    try:
        return take(url, bucket)
    except Unavailable:
        return []


def test_their_credentials_do_not_reach_the_backups_of_postgres(bucket):
    for forbidden in (
        lambda: bucket.s3.delete_object(Bucket="backups", Key=".ready"),
        lambda: bucket.s3.put_object(Bucket="backups", Key="x", Body=b"x"),
        lambda: bucket.s3.list_objects_v2(Bucket="backups"),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            forbidden()
