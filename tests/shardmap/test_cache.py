import dataclasses
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from zlib import crc32

import pytest
from django.conf import settings
from django.db import OperationalError
from pymemcache.client.base import Client
from redis import Redis

from deploy.local import programs
from deploy.local.ports import HOST
from shardmap import cache, copies, redis_client
from shardmap.copies import View
from tests.support import ctl, eventually, new_username

NOTHING_HEARD = View(None, {})


def redis() -> Redis:
    return redis_client.redis_client(settings.REDIS_FEEDS_URL)


class Rows:
    """A table, and a kind that caches it; counts how often it was read."""

    def __init__(self) -> None:
        self.rows = {}
        self.reads = []
        self.kind = cache.Kind(f"test_{new_username()}", self.load, "a shape")

    def load(self, ids: list) -> dict:
        self.reads.append(list(ids))
        return {row_id: self.rows[row_id] for row_id in ids if row_id in self.rows}

    def fetch(self, *ids):
        (found,) = cache.fetch((self.kind, ids))
        return found

    def change(self, row_id, value) -> None:
        self.rows[row_id] = value
        cache.forget(self.kind.key(row_id))


@pytest.fixture
def table() -> Rows:
    return Rows()


def test_a_second_read_does_not_read_the_rows(table):
    table.rows = {1: {"name": "é"}, 2: [1, 2]}
    assert table.fetch(1, 2, 3) == {1: {"name": "é"}, 2: [1, 2]}
    assert table.fetch(1, 2) == {1: {"name": "é"}, 2: [1, 2]}
    assert table.reads == [[1, 2, 3]]


def test_what_is_missing_is_asked_for_each_time(table):
    assert table.fetch(7) == {}
    table.rows[7] = "born"
    assert table.fetch(7) == {7: "born"}


def test_a_change_is_seen_by_the_next_read(table):
    table.rows[1] = "old"
    table.fetch(1)
    table.change(1, "new")
    assert table.fetch(1) == {1: "new"}


def test_a_fill_that_read_the_old_row_does_not_overwrite_the_invalidation(table):
    table.rows[1] = "old"

    def load_slowly(ids):
        found = {row_id: table.rows[row_id] for row_id in ids}
        table.change(1, "new")  # commits and invalidates while the reader still holds the old row
        return found

    slow = dataclasses.replace(table.kind, load=load_slowly)
    (stale,) = cache.fetch((slow, [1]))
    assert stale == {1: "old"}  # its read began before the change
    assert table.fetch(1) == {1: "new"}


def test_a_fill_does_not_overwrite_a_newer_fill(table):
    table.rows[1] = "old"

    def load_slowly(ids):
        found = {row_id: table.rows[row_id] for row_id in ids}
        table.change(1, "new")
        table.fetch(1)
        return found

    cache.fetch((dataclasses.replace(table.kind, load=load_slowly), [1]))
    reads = len(table.reads)
    assert table.fetch(1) == {1: "new"}
    assert len(table.reads) == reads  # from the cache


def test_a_hundred_readers_of_a_cold_hot_row_cause_one_fill(table, monkeypatch):
    monkeypatch.setattr(cache, "WAIT_SECONDS", 30)  # however busy the machine is
    table.rows[1] = "row"
    all_here, results = threading.Barrier(100), []

    def load_when_all_have_asked(ids):
        eventually(lambda: waiting, what="others ask, too")
        return table.load(ids)

    waiting = []
    monkeypatch.setattr(cache.time, "sleep", waiting.append)
    slow = dataclasses.replace(table.kind, load=load_when_all_have_asked)

    def read() -> None:
        all_here.wait()
        results.append(cache.fetch((slow, [1])))

    threads = [threading.Thread(target=read) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[{1: "row"}]] * 100
    assert table.reads == [[1]]


def test_nobody_waits_for_what_does_not_exist(table, monkeypatch):
    monkeypatch.setattr(cache.time, "sleep", lambda seconds: pytest.fail("somebody waits"))
    for _ in range(2):
        assert table.fetch(1) == {}


def test_readers_of_what_is_gone_do_not_queue(table, monkeypatch):
    monkeypatch.setattr(cache, "WAIT_SECONDS", 3600)
    all_here, pauses = threading.Barrier(20), []
    monkeypatch.setattr(cache.time, "sleep", lambda seconds: pauses.append(threading.get_ident()))

    def load_nothing_when_others_wait(ids):
        eventually(lambda: pauses, what="others wait")
        return table.load(ids)

    def read() -> None:
        all_here.wait()
        assert cache.fetch((dataclasses.replace(table.kind, load=load_nothing_when_others_wait), [1])) == [{}]

    with ThreadPoolExecutor(20) as pool:
        for done in [pool.submit(read) for _ in range(20)]:
            done.result()
    assert len(table.reads) == 20  # each of them looked, once the first had found nothing


def test_a_slow_client_does_not_fence_a_server_off(table, monkeypatch):
    table.rows[1] = "old"
    table.fetch(1)
    call, slow = cache._call, [TimeoutError("this process did not get to it")]

    def call_slowly(server, question):
        if slow:
            raise slow.pop()
        return call(server, question)

    monkeypatch.setattr(cache, "_call", call_slowly)
    table.change(1, "new")
    assert not slow
    assert not set(settings.MEMCACHED) & set(copies.fences())
    assert table.fetch(1) == {1: "new"}


def test_nobody_waits_for_who_could_not_read_the_row(table, monkeypatch):
    monkeypatch.setattr(cache.time, "sleep", lambda seconds: pytest.fail("somebody waits"))

    def fail(ids):
        raise OperationalError("the database is away")

    with pytest.raises(OperationalError):
        cache.fetch((dataclasses.replace(table.kind, load=fail), [1]))
    table.rows[1] = "row"
    assert table.fetch(1) == {1: "row"}
    reads = len(table.reads)
    table.fetch(1)
    assert len(table.reads) == reads


def test_whose_lease_is_never_filled_is_not_waited_for_long(table, monkeypatch):
    monkeypatch.setattr(cache, "WAIT_SECONDS", 0.05)
    table.rows[1] = "row"
    assert raw(table.kind.key(1)).set(table.kind.key(1), b"?of one who died", expire=60, noreply=False)
    assert table.fetch(1) == {1: "row"}
    assert text_of(table.kind.key(1)) == b"?of one who died"  # it is not ours to fill


def raw(key: str) -> Client:
    return Client(settings.MEMCACHED[crc32(key.encode()) % len(settings.MEMCACHED)])


def text_of(key: str) -> bytes | None:
    return raw(key).get(key)


def test_what_code_of_another_shape_has_cached_is_a_miss_and_replaced(table):
    table.rows[1] = {"name": "x"}
    table.fetch(1)
    newer = dataclasses.replace(table.kind, load=lambda ids: {1: {"name": "x", "bio": "y"}}, shape="another shape")
    for _ in range(2):
        (found,) = cache.fetch((newer, [1]))
        assert found == {1: {"name": "x", "bio": "y"}}
    assert table.fetch(1) == {1: {"name": "x"}}
    assert len(table.reads) == 2


def test_a_fill_over_another_shape_does_not_overwrite_an_invalidation(table):
    table.rows[1] = "old"
    table.fetch(1)

    def load_slowly(ids):
        found = {row_id: table.rows[row_id] for row_id in ids}
        table.change(1, "new")
        return found

    cache.fetch((dataclasses.replace(table.kind, load=load_slowly, shape="another shape"), [1]))
    (found,) = cache.fetch((dataclasses.replace(table.kind, shape="another shape"), [1]))
    assert found == {1: "new"}


def test_with_memcached_dead_reads_are_right_and_with_it_back_they_are_cached_again(table, stopped):
    table.rows = {n: f"row {n}" for n in range(20)}
    table.fetch(*range(20))
    stopped("memcached_1", "memcached_2")
    table.rows[3] = "changed meanwhile"
    cache.forget_surely(table.kind.key(3))  # a dead server remembers nothing, so this is done
    assert table.fetch(*range(20)) == table.rows
    ctl("start", "memcached_1", "memcached_2")

    def cached() -> bool:
        reads = len(table.reads)
        return table.fetch(*range(20)) == table.rows and len(table.reads) == reads

    eventually(cached)


def test_a_server_that_is_killed_and_started_has_forgotten_and_costs_no_error(table):
    table.rows = {n: n for n in range(20)}
    table.fetch(*range(20))
    ctl("restart", "memcached_1")
    table.change(3, "new")
    assert table.fetch(*range(20)) == table.rows


@pytest.fixture
def memcached(monkeypatch) -> Iterator[subprocess.Popen]:
    """A Memcached that a test has to itself, as the only one."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    command = ["memcached", f"--listen={HOST}", f"--port={port}", "--udp-port=0", "--user=nobody"]
    with subprocess.Popen(command) as process:
        eventually(programs.answers(port, "version\r\n", "VERSION"))
        monkeypatch.setattr(settings, "MEMCACHED", [f"{HOST}:{port}"])
        yield process
        process.kill()


def test_a_server_that_hangs_during_a_change_is_emptied_before_anybody_reads_from_it(table, memcached):
    table.rows = {1: "old", 2: "another"}
    table.fetch(1, 2)
    memcached.send_signal(signal.SIGSTOP)
    table.change(1, "new")
    assert table.fetch(1) == {1: "new"}
    memcached.send_signal(signal.SIGCONT)
    reads = len(table.reads)
    assert table.fetch(1, 2) == {1: "new", 2: "another"}
    assert len(table.reads) > reads  # it still has the other, which is as little to be believed

    def is_used_again() -> bool:
        reads = len(table.reads)
        assert table.fetch(1, 2) == {1: "new", 2: "another"}
        return len(table.reads) == reads

    eventually(is_used_again)
    assert settings.MEMCACHED[0].encode() not in redis().hkeys(copies.FENCES)


def test_a_fence_that_was_put_up_anew_meanwhile_is_not_lifted():
    copies.fence("somewhere:1")
    (name,) = redis().hmget(copies.FENCES, "somewhere:1")
    copies.fence("somewhere:1")
    copies.lift("somewhere:1", name)
    (latest,) = redis().hmget(copies.FENCES, "somewhere:1")
    assert latest not in (None, name)
    copies.lift("somewhere:1", latest)
    assert not redis().hexists(copies.FENCES, "somewhere:1")


def test_a_change_of_which_not_everybody_can_be_told_is_told_by_its_job(table, monkeypatch):
    table.rows[1] = "row"
    table.fetch(1)
    monkeypatch.setattr(settings, "REDIS_FEEDS_URL", "redis://127.0.0.1:9/0")  # nobody there
    table.change(1, "new")  # the request goes on
    with pytest.raises(redis_client.Unavailable):
        cache.forget_surely(table.kind.key(1))
    assert table.fetch(1) == {1: "new"}


def ids_on_both_servers(table) -> list[int]:
    """An ID whose key is on the first server, and one whose key is on the second."""
    first, second = (
        next(n for n in range(1000) if crc32(table.kind.key(n).encode()) % 2 == server) for server in range(2)
    )
    table.rows |= {first: "on the first", second: "on the second"}
    return [first, second]


def test_the_answer_of_a_server_that_another_thread_gives_up_meanwhile_is_read(table, monkeypatch):
    ids = ids_on_both_servers(table)
    right = table.fetch(*ids)
    receive = cache._receive

    def receive_while_others_give_up(question, client):
        for server in settings.MEMCACHED:
            cache._give_up(server, OSError("so another thread says"))
        return receive(question, client)

    monkeypatch.setattr(cache, "_receive", receive_while_others_give_up)
    assert table.fetch(*ids) == right
    monkeypatch.undo()
    cache._down_until.clear()
    for one in ids:  # nothing of the first question's answers is left on the connections
        assert table.fetch(one) == {one: right[one]}
    assert len(table.reads) == 1


def test_who_is_interrupted_between_question_and_answer_leaves_no_answer_for_the_next_one(table, monkeypatch):
    ids = ids_on_both_servers(table)
    right = table.fetch(*ids)

    def interrupted(question, client):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table.fetch(*ids)
    monkeypatch.undo()
    for one in reversed(ids):
        assert table.fetch(one) == {one: right[one]}
    assert len(table.reads) == 1


def test_only_one_caller_tries_a_server_that_was_given_up(table, monkeypatch):
    (one, _) = ids_on_both_servers(table)
    table.fetch(one)
    tried = []
    monkeypatch.setattr(cache, "_down_until", {settings.MEMCACHED[0]: 0.0})  # it is time to try again

    def try_while_another_asks(server, question):
        tried.append(server)
        assert cache._ask(server, lambda client: pytest.fail("a second one tries"), NOTHING_HEARD) is None

    monkeypatch.setattr(cache, "_try", try_while_another_asks)
    cache._ask(settings.MEMCACHED[0], lambda client: None, NOTHING_HEARD)
    assert tried == [settings.MEMCACHED[0]]


def test_what_is_refreshed_takes_the_old_ones_place_and_is_no_miss_for_anybody(table):
    table.rows[1] = "old"
    table.fetch(1)
    table.rows[1] = "new"
    cache.refresh(table.kind, 1)
    reads = len(table.reads)
    assert table.fetch(1) == {1: "new"}
    assert len(table.reads) == reads


def test_what_nobody_reads_is_not_cached_by_a_refresh(table):
    table.rows[1] = "row"
    cache.refresh(table.kind, 1)
    assert table.reads == []
    assert text_of(table.kind.key(1)) is None


def test_what_is_gone_is_deleted_by_a_refresh(table):
    table.rows[1] = "row"
    table.fetch(1)
    del table.rows[1]
    cache.refresh(table.kind, 1)
    assert text_of(table.kind.key(1)) is None
    assert table.fetch(1) == {}


def test_a_refresh_that_read_before_another_change_does_not_have_the_last_word(table):
    table.rows[1] = 0
    table.fetch(1)

    def load_while_another_changes(ids):
        found = {row_id: table.rows[row_id] for row_id in ids}
        if table.rows[1] < 2:
            table.rows[1] += 1
            cache.refresh(table.kind, 1)
        return found

    table.rows[1] = 1
    cache.refresh(dataclasses.replace(table.kind, load=load_while_another_changes), 1)
    assert table.fetch(1) == {1: 2}


def test_a_row_that_changes_all_the_time_is_deleted_in_the_end(table):
    table.rows[1] = 0
    table.fetch(1)

    def load_and_change(ids):
        found = {row_id: table.rows[row_id] for row_id in ids}
        table.rows[1] += 1
        raw(table.kind.key(1)).set(table.kind.key(1), b"?of somebody", noreply=False)
        return found

    cache.refresh(dataclasses.replace(table.kind, load=load_and_change), 1)
    assert text_of(table.kind.key(1)) is None
    assert table.fetch(1) == {1: cache.REFRESHES}


def test_a_refresh_whose_row_cannot_be_read_deletes(table):
    table.rows[1] = "old"
    table.fetch(1)

    def fail(ids):
        raise OperationalError("the database is away")

    table.rows[1] = "new"
    cache.refresh(dataclasses.replace(table.kind, load=fail), 1)
    assert table.fetch(1) == {1: "new"}
