"""Shards move between the two physical servers of the stack, and back."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connections
from psycopg2.errors import ObjectInUse

from photos.models import Comment
from shardmap import moves
from shardmap.migrate import missing, plan
from shardmap.models import LogicalShard, ShardMove
from shardmap.shards import on_shard, schema_name, shard_of
from tests.support import Person, ctl, eventually, is_back, photo_id, settled

WRITES_A_SECOND, WRITERS = 50, 5


def say(text: str) -> None:
    print(text)


def place(shard: int) -> str:
    return LogicalShard.objects.get(shard=shard).database


def other(server: str) -> str:
    return next(alias for alias in settings.SHARD_SERVERS if alias != server)


def traces(shard: int, *servers: str) -> list[str]:
    """What replication of this shard there is on some servers, or on any."""
    found = []
    for server in servers or settings.SHARD_SERVERS:
        with connections[server].cursor() as cursor:
            cursor.execute(
                """
                SELECT pubname FROM pg_publication UNION ALL SELECT slot_name FROM pg_replication_slots
                UNION ALL SELECT schemaname || tablename FROM pg_tables WHERE tablename = 'move_marker'
                """
            )
            found += [name for (name,) in cursor.fetchall() if schema_name(shard) in name]
    return found


@pytest.fixture(scope="module")
def mover():
    """Somebody whose shard moves, and is where it was in the end: other tests want shards on all servers."""
    one = Person()
    shard, home = shard_of(one.id), place(shard_of(one.id))
    yield one
    if place(shard) != home:
        moves.move(shard, home, say)
    moves.drop_old(shard)


@pytest.fixture
def owner(mover):
    """The same, with a new photo, and no other copies of the shard."""
    mover.media = mover.take()
    settled(mover)
    shard = shard_of(mover.id)
    moves.drop_old(shard)
    yield mover
    begun = ShardMove.objects.filter(shard=shard).first()
    if begun is not None:  # the test has failed
        moves.move(shard, begun.target, say)


class Writer(threading.Thread):
    """Comments on a photo at a steady rate, and reads it."""

    def __init__(self, media: dict, stop: threading.Event) -> None:
        super().__init__()
        self.one, self.media, self.stop = Person(), media, stop
        self.said: list[str] = []
        self.failed: list[str] = []
        self.slowest = 0.0

    def run(self) -> None:
        path = f"media/{self.media['id']}"
        while not self.stop.wait(WRITERS / WRITES_A_SECOND):
            text = f"{self.one.id} {len(self.said)}"
            began = time.monotonic()
            response = self.one.call("POST", f"{path}/comments", form={"text": text})
            self.slowest = max(self.slowest, time.monotonic() - began)
            if response.status_code == 200:
                self.said.append(text)
            else:
                self.failed.append(response.text)
            response = self.one.call("GET", path)
            if response.status_code != 200:
                self.failed.append(response.text)


def test_a_shard_moves_while_clients_write_to_it(owner, monkeypatch):
    shard = shard_of(owner.id)
    home = place(shard)
    stop = threading.Event()
    writers = [Writer(owner.media, stop) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        eventually(lambda: all(writer.said for writer in writers))
        pause = moves.move(shard, other(home), say)
        said = [len(writer.said) for writer in writers]
        eventually(lambda: all(len(writer.said) > before for writer, before in zip(writers, said, strict=True)))
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert [failure for writer in writers for failure in writer.failed] == []
    assert pause < moves.LONGEST_PAUSE
    print(f"writes waited for {pause:.3f} s, the slowest request took {max(w.slowest for w in writers):.3f} s")
    assert place(shard) == other(home)
    with on_shard(owner.id):
        rows = list(Comment.objects.filter(photo_id=photo_id(owner.media["id"])).values_list("text", flat=True))
    assert sorted(rows) == sorted(text for writer in writers for text in writer.said)
    assert owner.get(f"media/{owner.media['id']}")["comments"]["count"] == len(rows)
    assert traces(shard) == []


def test_the_old_copy_stays_readable_and_takes_no_writes_until_it_is_dropped(owner):
    shard = shard_of(owner.id)
    home = place(shard)
    moves.move(shard, other(home), say)
    ((server, schema),) = [copy for copy in moves.old_copies() if copy[1].startswith(schema_name(shard))]
    assert server == home
    with connections[home].cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {schema}.photos_photo WHERE id = %s", [photo_id(owner.media["id"])])
        assert cursor.fetchone() == (1,)
        with pytest.raises(Exception, match="permission denied"):
            cursor.execute(f"DELETE FROM {schema}.photos_photo")
    assert moves.drop_old(shard) == [f"{schema} on {home}"]
    assert moves.drop_old(shard) == []


def test_ids_go_on_rising_at_the_new_place(owner):
    shard = shard_of(owner.id)
    moves.move(shard, other(place(shard)), say)
    again = owner.take()
    assert photo_id(again["id"]) > photo_id(owner.media["id"])
    assert missing(plan()) == {}


KILL_AT = """
import os, signal, sys
import django
django.setup()
from django.conf import settings
from shardmap import moves

step, shard, to = sys.argv[1], int(sys.argv[2]), sys.argv[3]
run, tell = moves._run, moves._tell_directory

def killed(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def run_or_die(admin, sql, params=None):
    if step in sql:
        killed()
    return run(admin, sql, params)

def tell_and_die(*args):
    tell(*args)
    killed()

moves._run = run_or_die
if step == "before the directory":
    moves._tell_directory = killed
if step == "after the directory":
    moves._tell_directory = tell_and_die
moves.move(shard, to, print)
"""
BEFORE_THE_SWITCH = [
    "CREATE PUBLICATION",
    "CREATE SUBSCRIPTION",
    "SELECT srsubstate",
    "LOCK TABLE",
    "setval",
    "REVOKE",
]
AFTER_THE_SWITCH = ["before the directory", "after the directory", "row::text", "DROP SUBSCRIPTION", "DROP PUBLICATION"]


def kill_the_mover(step: str, shard: int, to: str) -> None:
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "instagram.settings"}
    command = [sys.executable, "-c", KILL_AT, step, str(shard), to]
    mover = subprocess.run(command, env=environment, cwd=settings.BASE_DIR, timeout=60, check=False)
    assert mover.returncode == -signal.SIGKILL


@pytest.mark.parametrize("step", BEFORE_THE_SWITCH + AFTER_THE_SWITCH)
def test_a_mover_that_was_killed_can_go_on(owner, step):
    shard = shard_of(owner.id)
    target = other(place(shard))
    kill_the_mover(step, shard, target)
    if step in BEFORE_THE_SWITCH:
        owner.post(f"media/{owner.media['id']}/comments", text="meanwhile")
    else:
        with pytest.raises(moves.MoveFailed, match="go on with"):
            moves.undo(shard)
    moves.move(shard, target, say)
    assert place(shard) == target
    assert traces(shard) == []
    comments = owner.get(f"media/{owner.media['id']}/comments")
    assert [comment["text"] for comment in comments] == (["meanwhile"] if step in BEFORE_THE_SWITCH else [])


@pytest.mark.parametrize("step", ["CREATE SUBSCRIPTION", "LOCK TABLE", "REVOKE"])
def test_a_mover_that_was_killed_before_the_switch_can_be_undone(owner, step):
    shard = shard_of(owner.id)
    home = place(shard)
    kill_the_mover(step, shard, other(home))
    assert moves.undo(shard) == home
    assert place(shard) == home
    assert traces(shard) == []
    with connections[other(home)].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_namespace WHERE nspname = %s", [schema_name(shard)])
        assert cursor.fetchone() == (0,)
    with pytest.raises(moves.MoveFailed, match="not being moved"):
        moves.undo(shard)


def test_a_move_that_has_lost_its_slot_says_so_and_can_be_made_anew(owner):
    shard = shard_of(owner.id)
    home = place(shard)
    kill_the_mover("LOCK TABLE", shard, other(home))
    drop_the_slot(shard, home)
    with pytest.raises(moves.MoveFailed, match=f"slot is no longer on {home}.*shards undo {shard}"):
        moves.move(shard, other(home), say)
    assert moves.undo(shard) == home
    assert traces(shard) == []
    moves.move(shard, other(home), say)
    assert place(shard) == other(home)
    assert traces(shard) == []


def drop_the_slot(shard: int, server: str) -> None:
    """What a failover does to it."""
    with moves._admin(server) as admin:
        slot = f"move_{schema_name(shard)}"

        def dropped() -> bool:  # its subscription takes it again each second
            try:
                query = "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = %s"
                moves._run(admin, query, [slot])
                moves._run(admin, "SELECT pg_drop_replication_slot(%s)", [slot])
            except ObjectInUse:
                return False
            return True

        eventually(dropped)


def test_a_move_whose_target_asks_for_nothing_says_so_and_goes_on_when_that_is_mended(owner, monkeypatch):
    monkeypatch.setattr(moves, "PATIENCE", 1)
    shard = shard_of(owner.id)
    target = other(place(shard))
    kill_the_mover("LOCK TABLE", shard, target)
    with moves._admin(target) as admin:
        moves._run(admin, f"ALTER SUBSCRIPTION move_{schema_name(shard)} DISABLE")
        with pytest.raises(moves.MoveFailed, match="stands still"):
            moves.move(shard, target, say)
        moves._run(admin, f"ALTER SUBSCRIPTION move_{schema_name(shard)} ENABLE")
    monkeypatch.undo()
    moves.move(shard, target, say)
    assert place(shard) == target
    assert traces(shard) == []


def test_a_move_to_a_server_that_is_lost_can_be_undone_and_made_anew_when_it_is_back(owner, stopped):
    shard = shard_of(owner.id)
    moves.move(shard, "a", say)  # where the directory is, too
    kill_the_mover("srsubstate", shard, "b")  # while tables are being copied
    stopped("postgres_b")
    with pytest.raises(moves.MoveFailed, match=f"shards undo {shard} --target-lost"):
        moves.undo(shard)
    assert moves.undo(shard, target_lost=True) == "a"
    assert traces(shard, "a") == []
    with moves._admin("a") as admin:
        assert moves._run(admin, "SELECT slot_name FROM pg_replication_slots WHERE slot_name ~ '_sync_'") == []
    assert not ShardMove.objects.filter(shard=shard).exists()
    ctl("start", "postgres_b")
    eventually(is_back, 30)
    assert traces(shard, "b") != []
    moves.drop_old(shard)
    owner.post(f"media/{owner.media['id']}/comments", text="meanwhile")
    moves.move(shard, "b", say)
    assert place(shard) == "b"
    assert traces(shard) == []
    assert [comment["text"] for comment in owner.get(f"media/{owner.media['id']}/comments")] == ["meanwhile"]


def test_a_drain_stops_at_what_fails_and_takes_all_that_is_left_when_called_again(owner, monkeypatch):
    """Only the owner's shard really moves: all of them would take a minute."""
    shard = shard_of(owner.id)
    moves.move(shard, "a", say)
    kill_the_mover("DROP SUBSCRIPTION", shard, "b")  # it is on b, but has left a move to be finished
    wanted = sorted({shard, *LogicalShard.objects.filter(database="a").values_list("shard", flat=True)})
    drained, move = [], moves.move

    def fail(shard: int, to: str, say: moves.Say) -> None:
        drained.append((shard, to))
        raise moves.MoveFailed("too busy")

    def note(one: int, to: str, say: moves.Say) -> None:
        drained.append((one, to))
        if one == shard:
            move(one, to, say)

    monkeypatch.setattr(moves, "move", fail)
    with pytest.raises(CommandError, match="too busy"):
        call_command("shards", "drain", "a", "--to", "b")
    assert drained == [(wanted[0], "b")]
    drained.clear()
    monkeypatch.setattr(moves, "move", note)
    call_command("shards", "drain", "a", "--to", "b")
    assert drained == [(one, "b") for one in wanted]
    assert traces(shard) == []


def test_the_list_says_which_shards_a_server_has_and_how_large_they_are(capsys):
    call_command("shards", "list", "a")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    on_a = LogicalShard.objects.filter(database="a").order_by("shard")
    assert [int(shard) for shard, _ in rows] == list(on_a.values_list("shard", flat=True))
    assert all(float(size) > 0 for _, size in rows)


def test_who_asks_for_the_impossible_is_told(owner):
    shard = shard_of(owner.id)
    home = place(shard)
    with pytest.raises(moves.MoveFailed, match="no server 'nowhere'"):
        moves.move(shard, "nowhere", say)
    with pytest.raises(moves.MoveFailed, match="no logical shard"):
        moves.move(settings.LOGICAL_SHARDS, other(home), say)
    assert moves.move(shard, home, say) is None  # it is there already
    assert not ShardMove.objects.filter(shard=shard).exists()
