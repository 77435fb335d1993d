"""Failovers of the stack's `postgres_b`, with the app in front of it, to a replica of the tests', and back."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from django.conf import settings
from fabric import Config
from invoke import Context

from deploy import databases, failover, hosts
from deploy.failover import Pgbouncer, Refused, Server
from deploy.failover_drill import drill
from deploy.local import pairs
from deploy.local.data import as_user
from deploy.local.layout import POSTGRES_USER, Stack, make_dir, write
from deploy.local.machine import which
from deploy.local.programs import postgres
from instagram.settings import _database
from photos.models import Comment
from shardmap.backend import base
from shardmap.shards import on_shard, placement, shard_of
from tests.deploy.bare_host import free_port
from tests.support import Person, ctl, eventually, photo_id, settled

pytestmark = pytest.mark.slow

STACK = Stack(os.environ["STACK"])
STACK.load_secrets()


@pytest.fixture(scope="module")
def pgbouncer():
    return pairs.pgbouncer(STACK)


@pytest.fixture(scope="module")
def stacks_own(pgbouncer):
    """`postgres_b`, to which pgbouncer leads again when all is over."""
    ini = STACK.conf / "pgbouncer.ini"
    text, stat = ini.read_text(), ini.stat()
    yield pairs.server(STACK, "postgres_b")
    assert ini.read_text() == text, "a test has left pgbouncer leading elsewhere"
    os.utime(ini, (stat.st_atime, stat.st_mtime))  # or `up` would think that the configuration is new


@pytest.fixture(scope="module")
def replica(stacks_own, pgbouncer):
    """A replica of it, which is no program of the stack's."""
    program = postgres(STACK, "postgres_b_replica", "postgres_b")
    processes: list[subprocess.Popen] = []
    log = (STACK.logs / "postgres_b_replica.log").open("a")

    def start() -> None:
        processes.append(subprocess.Popen(program.command, stderr=log, cwd="/", env={}, **as_user(POSTGRES_USER)))

    def stop(how: signal.Signals = signal.SIGINT) -> None:
        for process in processes:
            process.send_signal(how)
            process.wait(30)
        processes.clear()

    server = replace(pairs.server(STACK, program.name), start=start, stop=stop)
    make_dir(STACK.data(program.name), POSTGRES_USER, 0o700)
    try:
        failover.copy(stacks_own, server)
        failover.follow(stacks_own, server)
        yield server
        if failover.roles([stacks_own, server], [pgbouncer])[0] is server:  # a test has failed
            failover.rejoin(server, stacks_own)
            failover.failover(server, stacks_own, [pgbouncer])
    finally:
        stop(signal.SIGKILL)
        log.close()
        shutil.rmtree(STACK.data(program.name))
        for file in STACK.conf.glob(f"*{program.name}*"):
            file.unlink()
        stacks_own.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")


@pytest.fixture(scope="module")
def kill(stacks_own, replica):
    """A function that kills a server so that it stays dead."""

    def kill(server: Server) -> None:
        if server is stacks_own:
            pairs.kill(STACK, server.name)
        else:
            server.stop(signal.SIGKILL)

    return kill


@pytest.fixture(scope="module")
def media():
    """A photo on the server that is going to die."""
    owner = next(one for one in iter(Person, None) if placement()[shard_of(one.id)] == "b")
    media = owner.take()
    settled(owner)
    return media


@contextmanager
def commenting(media: dict) -> Iterator[tuple[list[int], set[int]]]:
    """Somebody comments meanwhile; yields the IDs of the comments that were answered with 200, and all status codes."""
    stop, said, codes = threading.Event(), [], set()

    def work(one: Person) -> None:
        while not stop.wait(0.15) and len(said) < 100:  # some 120 are allowed in an hour
            response = one.call("POST", f"media/{media['id']}/comments", form={"text": "still here?"})
            codes.add(response.status_code)
            if response.status_code == 200:
                said.append(int(response.json()["data"]["id"]))

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, Person())
        try:
            yield said, codes
        finally:
            stop.set()
        future.result()


def no_answer(command: str) -> str:
    raise Refused("No route to host")


@contextmanager
def another_pgbouncer(pgbouncer: Pgbouncer) -> Iterator[Pgbouncer]:
    """One that leads where the stack's own leads, on a host called app3."""
    ini = STACK.conf / "pgbouncer_of_app3.ini"
    another = replace(pgbouncer, name="app3", port=free_port(), ini=str(ini))
    write(ini, Path(pgbouncer.ini).read_text().replace(str(pgbouncer.port), str(another.port)), POSTGRES_USER)

    def answers() -> bool:
        with suppress(Refused):
            return bool(another.order("SHOW VERSION"))
        return False

    process = subprocess.Popen([which("pgbouncer"), "-q", ini], stderr=subprocess.DEVNULL, **as_user(POSTGRES_USER))
    try:
        eventually(answers)
        yield another
    finally:
        process.kill()
        process.wait()
        ini.unlink()


def comments_of(media: dict) -> set[int]:
    with on_shard(int(media["user"]["id"])):
        return set(Comment.objects.filter(photo_id=photo_id(media["id"])).values_list("id", flat=True))


def test_with_synchronous_replication_a_killed_primary_takes_nothing_with_it(
    stacks_own, replica, pgbouncer, kill, media
):
    with commenting(media) as (said, codes):
        eventually(lambda: said)
        result = drill(stacks_own, replica, pgbouncer, kill, synchronous=True)
        before = len(said)
        eventually(lambda: len(said) > before + 1, 20, "comments are taken again, without a restart of the app")
    assert (result.lost, result.repeated_ids) == (0, 0), result
    assert result.failover_seconds <= result.seconds_without_writes < 30, result
    assert codes <= {200, 503}
    assert set(said) <= comments_of(media)
    assert len(set(said)) == len(said)


def test_the_old_primary_only_reads_and_follows_when_it_has_forgotten_what_nobody_was_told_of(
    stacks_own, replica, pgbouncer
):
    ctl("start", stacks_own.name)  # as a boot would, or somebody who does not know
    with pytest.raises(Refused, match="cannot execute CREATE TABLE in a read-only transaction"):
        stacks_own.sql("CREATE TABLE mine (id int)")
    assert failover.roles([stacks_own, replica], [pgbouncer]) == (replica, stacks_own)
    said = []
    failover.rejoin(replica, stacks_own, say=said.append)
    assert said == ["postgres_b follows postgres_b_replica"], "it was rewound, not copied"
    replica.sql("CREATE TABLE ours AS SELECT 1")
    eventually(lambda: stacks_own.sql("SELECT to_regclass('ours')") == "ours")
    replica.sql("DROP TABLE ours")


def test_a_primary_that_nobody_can_reach_is_not_replaced_until_somebody_says_that_it_is_off(
    stacks_own, replica, pgbouncer
):
    unreachable = replace(replica, shell=no_answer)
    with pytest.raises(Refused, match="No route to host"):
        failover.failover(unreachable, stacks_own, [pgbouncer])
    assert stacks_own.sql("SELECT pg_is_in_recovery()") == "t"
    pgbouncer.check_write("shards_b")  # nobody waits any more


def test_without_it_the_drill_says_how_much_is_lost_and_no_id_comes_twice(stacks_own, replica, pgbouncer, kill, media):
    result = drill(replica, stacks_own, pgbouncer, kill, synchronous=False)
    assert 0 < result.lost < result.acknowledged
    assert f"{result.lost} of them are lost" in str(result)
    assert result.repeated_ids == 0
    with commenting(media) as (said, _):
        eventually(lambda: said)


def test_a_write_that_no_replica_has_is_not_acknowledged_until_somebody_decides(stacks_own, media):
    """After the last test, none follows."""
    reload = "SELECT pg_reload_conf()"
    stacks_own.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{failover.NAME}'", reload)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    try:
        with commenting(media) as (said, codes):
            eventually(lambda: stacks_own.sql(waiting) != "0", what="a COMMIT waits")
            assert not said
            failover.synchronous(stacks_own, False)
            eventually(lambda: said)
        assert codes == {200}
    finally:
        failover.synchronous(stacks_own, True)  # that is off, as the configuration says


def test_a_replica_that_does_not_follow_is_not_promoted_while_the_primary_lives(stacks_own, replica, pgbouncer):
    with pytest.raises(Refused, match="does not follow"):
        failover.failover(stacks_own, replica, [pgbouncer])
    assert set(pgbouncer.databases(stacks_own).values()) == {False}


def test_everything_is_copied_only_to_a_server_that_cannot_be_rewound(stacks_own, replica):
    failover.fence(replica)
    with pytest.raises(Refused, match="Connection refused"):
        failover.rewind(replace(stacks_own, port=free_port()), replica)
    replica.shell(f"find {replica.data}/pg_wal -type f -delete")
    said = []
    failover.rejoin(stacks_own, replica, say=said.append)
    copied, followed = said
    assert copied.startswith("postgres_b_replica gets everything anew: ")
    assert followed == "postgres_b_replica follows postgres_b"


def test_a_host_that_is_off_is_not_asked_for_anything(stacks_own, replica, pgbouncer, kill, media):
    kill(stacks_own)
    failover.failover(replace(stacks_own, shell=no_answer), replica, [pgbouncer], host_is_off=True)
    assert failover.roles([stacks_own, replica], [pgbouncer]) == (replica, stacks_own)
    with commenting(media) as (said, _):
        eventually(lambda: said)
    stacks_own.shell(f"touch {stacks_own.data}/standby.signal")  # before the host gets its network back
    failover.rejoin(replica, stacks_own)


def test_whoever_connects_past_pgbouncer_finds_the_primary(stacks_own, replica):
    login = f"postgresql://instagram:{STACK.secrets['instagram_password']}"
    places = [f"{server.host}:{server.port}" for server in (stacks_own, replica)]
    for pair in (places, places[::-1]):
        url = f"{login}@{','.join(pair)}/shards_b?target_session_attrs=primary"
        wrapper = base.DatabaseWrapper(settings.DATABASES["b"] | _database(url), "b")
        with closing(wrapper), wrapper.cursor() as cursor:
            cursor.execute("SELECT inet_server_port()")
            assert cursor.fetchone() == (replica.port,)


def test_a_dead_pgbouncer_is_named_and_left_out_and_led_on_when_it_is_back(stacks_own, replica, pgbouncer):
    with another_pgbouncer(pgbouncer) as another:
        both = [pgbouncer, another]
        dead = replace(another, shell=no_answer)
        with pytest.raises(Refused, match=r"pgbouncer of app3: No route to host\n.* --without app3 "):
            failover.failover(replica, stacks_own, [pgbouncer, dead])
        failover.failover(replica, stacks_own, [pgbouncer])
        assert another.databases(replica), "nobody has told it"
        failover.rejoin(stacks_own, replica)
        with pytest.raises(Refused, match="during recovery"):
            another.check_write("shards_b")
        with pytest.raises(Refused, match="say --to which"):
            failover.roles([stacks_own, replica], both)
        failover.failover(replica, stacks_own, both)
        another.check_write("shards_b")
        assert failover.roles([stacks_own, replica], both) == (stacks_own, replica)
        assert stacks_own.is_followed(), "the replica was left alone"


def test_a_failover_that_was_interrupted_still_waits_for_the_last_of_the_wal(
    stacks_own, replica, pgbouncer, monkeypatch
):
    replica.sql("SELECT pg_wal_replay_pause()")
    eventually(lambda: replica.sql("SELECT pg_get_wal_replay_pause_state()") == "paused")
    with pytest.raises(Refused, match="No route to host"):  # after the primary was shut down
        failover.failover(stacks_own, replace(replica, shell=no_answer), [pgbouncer])
    with monkeypatch.context() as patch:
        patch.setattr(failover, "PATIENCE", 1)
        with pytest.raises(Refused, match="has replayed all"):
            failover.failover(stacks_own, replica, [pgbouncer])
    replica.sql("SELECT pg_wal_replay_resume()")
    failover.failover(stacks_own, replica, [pgbouncer])
    failover.rejoin(replica, stacks_own)
    failover.failover(replica, stacks_own, [pgbouncer])


def test_the_inventory_says_all_that_a_failover_must_know():
    inventory = hosts.load(Context(Config()))
    for name in inventory.postgres:
        servers, pgbouncers = databases._reached(Context(Config()), name, "", "", "")
        assert [server.name for server in servers] == inventory.postgres[name]
        assert pgbouncers
