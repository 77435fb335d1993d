"""A replica of its own for the stack's first physical server, which only this process reads from."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psycopg2
import pytest
from django.conf import settings
from django.db import connections
from django.test import Client

from accounts import graph
from accounts.models import Follower
from deploy.local.data import as_user
from deploy.local.layout import POSTGRES_USER, Stack, make_dir
from deploy.local.machine import postgres_bin
from deploy.local.ports import HOST
from shardmap import cache, copies, moves, replicas
from shardmap.models import LogicalShard
from shardmap.redis_client import redis_client
from shardmap.shards import on_shard, placement, shard_of, shard_transaction
from tests.support import Person, ctl, eventually, is_back, settled

NOBODY = {"client_id": "phone"}  # who has never written anything


class Replica:
    """A Postgres that streams from `postgres_a`."""

    def __init__(self) -> None:
        self.stack = Stack(os.environ["STACK"])
        self.stack.load_secrets()
        self.data = self.stack.data("replica_of_the_tests")
        with socket.create_server((HOST, 0)) as server:
            self.port = server.getsockname()[1]
        self.process: subprocess.Popen | None = None

    def make(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        make_dir(self.data, POSTGRES_USER, 0o700)
        primary = ("-h", HOST, "-p", str(self.stack.ports["postgres_a"]), "-U", "replicator")
        command = [postgres_bin() / "pg_basebackup", *primary, "-D", self.data, "-R", "-N", "--checkpoint=fast"]
        password = {"PGPASSWORD": self.stack.secrets["replicator_password"]}
        subprocess.run(command, check=True, timeout=60, cwd=self.data, env=password, **as_user(POSTGRES_USER))
        self.start()

    def start(self) -> None:
        conf, hba = (self.stack.conf / f"postgres_a.{kind}" for kind in ("conf", "hba.conf"))
        command = [postgres_bin() / "postgres", f"--config-file={conf}", f"--hba-file={hba}", "-D", self.data]
        port = ("-c", f"port={self.port}", "-c", "cluster_name=replica_of_the_tests")
        log = (self.stack.logs / "replica_of_the_tests.log").open("w")
        self.process = subprocess.Popen([*command, *port], stderr=log, cwd=self.data, env={}, **as_user(POSTGRES_USER))
        eventually(self.answers, 20, "the replica answers")

    def answers(self) -> bool:
        try:
            return self.run("SELECT pg_is_in_recovery()")
        except psycopg2.OperationalError:
            return False

    def run(self, sql: str):
        """What the superuser is answered."""
        url = f"postgresql://postgres:{self.stack.secrets['postgres_password']}@{HOST}:{self.port}/shards_a"
        connection = psycopg2.connect(url, connect_timeout=2)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchone()[0]
        except psycopg2.errors.SerializationFailure:  # it was in the way of what is being replayed
            return self.run(sql)
        finally:
            connection.close()

    def kill(self) -> None:
        self.signal_all(signal.SIGKILL)
        self.process.wait(20)

    def signal_all(self, number: int) -> None:
        """To the server and all of its processes."""
        pid = self.process.pid
        for one in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
            with suppress(ProcessLookupError):  # one ended just now: its client left, or its parent is dead
                os.kill(one, number)

    def has_all(self) -> bool:
        with connections["a"].cursor() as cursor:
            cursor.execute("SELECT pg_current_wal_flush_lsn()")
            return self.run(f"SELECT pg_last_wal_replay_lsn() >= '{cursor.fetchone()[0]}'")


@pytest.fixture(scope="module")
def running():
    one = Replica()
    try:
        one.make()
        yield one
    finally:
        if one.process:
            one.kill()
        shutil.rmtree(one.data, ignore_errors=True)


@pytest.fixture
def replica(running, monkeypatch):
    """The replica, which this process knows of, and trusts however far behind it is."""
    description = connections["a"].settings_dict | {"HOST": HOST, "PORT": running.port, "NAME": "shards_a"}
    monkeypatch.setattr(settings, "SHARD_REPLICAS", {"a": "a_replica"})
    monkeypatch.setitem(connections.settings, "a_replica", description)
    monkeypatch.setattr(replicas, "MOST_BEHIND", 600)
    monkeypatch.setattr(replicas, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(replicas, "ANSWER_SECONDS", 5)
    monkeypatch.setattr(replicas, "SECONDS_DOWN", 0.5)
    replicas._replica_of.cache_clear()
    eventually(replicas._replica_of("a").is_fresh)
    yield running
    if running.process.poll() is not None:
        running.start()
    running.run("SELECT pg_wal_replay_resume()")
    connections["a_replica"].close()
    replicas._replica_of.cache_clear()


@pytest.fixture
def paused(replica):
    """The same, and what is written from now on does not show in it."""
    replica.run("SELECT pg_wal_replay_pause()")
    eventually(lambda: replica.run("SELECT pg_get_wal_replay_pause_state()") == "paused")
    return replica


def person_on(server: str) -> Person:
    return next(one for one in iter(Person, None) if placement()[shard_of(one.id)] == server)


@pytest.fixture(scope="module")
def star():
    """Somebody whose followers are listed on the server that has a replica."""
    return person_on("a")


def follow(follower: Person, followee: Person) -> None:
    """Follows in this process, with all that a worker does for it, but for the mark of the writer."""
    form = {"action": "follow", "access_token": follower.token}
    assert Client().post(f"/v1/users/{followee.id}/relationship", form).status_code == 200
    settled(follower, followee)


def followers(of: Person, **params) -> list[str]:
    """What this process answers: usernames."""
    response = Client().get(f"/v1/users/{of.id}/followed-by", params)
    assert response.status_code == 200, response.content
    return [user["username"] for user in response.json()["data"]]


def test_a_writer_is_shown_the_write_while_others_are_shown_the_replica(star, paused):
    fan = Person()
    follow(fan, star)
    assert fan.username not in followers(star, **NOBODY)
    assert fan.username in followers(star, access_token=fan.token)
    # What comes after a first page, and what is read in a transaction, is never old.
    assert fan.username in followers(star, cursor=2**62, **NOBODY)
    with shard_transaction(star.id):
        rows = replicas.read(Follower.objects.filter(followee_id=star.id), None, first=True)
    assert fan.id in [row.follower_id for row in rows]


def test_a_replica_that_falls_behind_is_asked_no_more_until_it_has_caught_up(star, paused, monkeypatch):
    fan = Person()
    follow(fan, star)
    assert fan.username not in followers(star, **NOBODY)
    monkeypatch.setattr(replicas, "MOST_BEHIND", 1)
    eventually(lambda: fan.username in followers(star, **NOBODY))
    paused.run("SELECT pg_wal_replay_resume()")
    eventually(paused.has_all)
    eventually(replicas._replica_of("a").is_fresh)
    assert fan.username in followers(star, **NOBODY)


def test_a_writer_goes_to_the_replica_again_when_all_writes_must_be_there(star, paused, monkeypatch):
    monkeypatch.setattr(replicas, "QUIET_SECONDS", 1)
    fan = Person()
    follow(fan, star)

    def shown_to_fan() -> bool:
        return fan.username in followers(star, access_token=fan.token)

    def forgotten_by_memcached() -> None:
        for server in settings.MEMCACHED:
            cache._client(server).flush_all(noreply=False)
        redis_client(settings.REDIS_FEEDS_URL).delete(copies.LOG)  # with it, the processes' copies

    writes = [
        lambda: follow(fan, star),
        lambda: graph.mirror_follow(fan.id, star.id),  # a job's, that writes where the followee lives
        forgotten_by_memcached,  # there may have been a write
    ]
    for write in writes:
        eventually(lambda: not shown_to_fan())
        write()
        assert shown_to_fan()


def test_a_memcached_that_a_writer_cannot_reach_hides_no_write(star, paused, monkeypatch):
    monkeypatch.setattr(replicas, "QUIET_SECONDS", 1)
    monkeypatch.setattr(cache, "SECONDS_DOWN", 0)
    fan = Person()
    follow(fan, star)
    for server in settings.MEMCACHED:
        eventually(lambda: fan.username not in followers(star, access_token=fan.token))
        with monkeypatch.context() as patch, socket.create_server((HOST, 0)) as silent:
            silent_one = f"{HOST}:{silent.getsockname()[1]}"
            patch.setattr(settings, "MEMCACHED", [silent_one if one == server else one for one in settings.MEMCACHED])
            replicas.note_write_of(fan.id)
        assert fan.username in followers(star, access_token=fan.token), server


def test_a_killed_replica_is_replaced_by_its_primary(star, paused):
    fan = Person()
    follow(fan, star)
    assert fan.username not in followers(star, **NOBODY)
    paused.kill()
    assert fan.username in followers(star, **NOBODY)
    paused.start()
    eventually(replicas._replica_of("a").is_fresh)


def test_a_server_that_replays_nothing_or_another_timeline_is_left_alone(star, replica, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(connections.settings, "a_replica", connections["a"].settings_dict)  # as if it were promoted
        connections.close_all()
        del connections["a_replica"]
        eventually(lambda: not replicas._replica_of("a").is_fresh())
        followers(star, **NOBODY)
        del connections["a_replica"]
    eventually(replicas._replica_of("a").is_fresh)
    monkeypatch.setattr(replicas, "WRITTEN", replicas.WRITTEN.replace("::int", "::int + 1"))
    eventually(lambda: not replicas._replica_of("a").is_fresh())


@pytest.mark.parametrize("look_seconds", [0, 60], ids=["noticed by a look", "noticed by a reader"])
def test_a_hung_replica_is_waited_for_once(star, replica, monkeypatch, look_seconds):
    monkeypatch.setattr(replicas, "LOOK_SECONDS", look_seconds)
    followers(star, **NOBODY)
    replica.signal_all(signal.SIGSTOP)
    try:
        monkeypatch.setattr(replicas, "ANSWER_SECONDS", 1)
        monkeypatch.setattr(replicas, "SECONDS_DOWN", 60)
        began = time.monotonic()
        for _ in range(10):
            followers(star, **NOBODY)
        assert replicas.ANSWER_SECONDS <= time.monotonic() - began < 5 * replicas.ANSWER_SECONDS
    finally:
        replica.signal_all(signal.SIGCONT)


def test_a_restarted_primary_is_followed_again(star, replica):
    ctl("restart", "postgres_a")
    eventually(is_back, 30)
    fan = Person()
    follow(fan, star)
    with on_shard(star.id):
        eventually(lambda: Follower.objects.using("a_replica").filter(follower_id=fan.id).exists())
    eventually(replicas._replica_of("a").is_fresh)
    assert fan.username in followers(star, **NOBODY)


@pytest.fixture
def moving():
    """Somebody whose shard moves to the server with the replica; it is moved home in the end."""
    one = person_on("b")
    yield one
    shard = shard_of(one.id)
    if LogicalShard.objects.get(shard=shard).database == "a":
        moves.move(shard, "b", print)
    moves.drop_old(shard)


def test_a_shard_that_has_moved_is_found_before_the_replica_has_heard_of_it(moving, paused, monkeypatch):
    fan, shard = Person(), shard_of(moving.id)
    follow(fan, moving)
    with monkeypatch.context() as patch:
        patch.setattr(moves, "placement", SimpleNamespace(cache_clear=lambda: None))  # this process has not, either
        moves.move(shard, "a", print)
    assert placement()[shard] == "b"
    assert followers(moving, **NOBODY) == [fan.username]
    assert placement()[shard] == "a"
    paused.run("SELECT pg_wal_replay_resume()")
    eventually(paused.has_all)
    with monkeypatch.context() as patch:
        patch.setattr(moves, "placement", SimpleNamespace(cache_clear=lambda: None))
        moves.move(shard, "b", print)
    eventually(paused.has_all)
    assert followers(moving, **NOBODY) == [fan.username]
    assert placement()[shard] == "b"
