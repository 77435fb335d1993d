import dataclasses
import socket
import threading
from zlib import crc32

import pytest
from django.conf import settings
from pymemcache.client.base import Client

from shardmap import cache
from tests.support import ctl, eventually, new_username

pytestmark = pytest.mark.alone


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


def test_one_of_many_readers_fills(table):
    table.rows[1] = "row"
    results = []
    threads = [threading.Thread(target=lambda: results.append(table.fetch(1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [{1: "row"}] * 8
    reads = len(table.reads)
    assert table.fetch(1) == {1: "row"}
    assert len(table.reads) == reads


def test_a_lease_is_never_taken_for_a_value(table):
    table.rows[1] = "row"
    key = table.kind.key(1)
    servers = settings.MEMCACHED
    client = Client(servers[crc32(key.encode()) % len(servers)])
    client.set(key, b"?somebody else's lease", noreply=False)
    assert table.fetch(1) == {1: "row"}
    client.delete(key, noreply=False)


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


def test_a_server_that_hangs_is_passed_over_but_never_taken_for_invalidated(table, monkeypatch):
    table.rows[1] = "row"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(settings, "MEMCACHED", [f"127.0.0.1:{silent.getsockname()[1]}"])
        assert table.fetch(1) == {1: "row"}
        cache.forget(table.kind.key(1))
        with pytest.raises(cache.Unavailable):
            cache.forget_surely(table.kind.key(1))


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
        assert cache._ask(server, lambda client: pytest.fail("a second one tries")) is None

    monkeypatch.setattr(cache, "_try", try_while_another_asks)
    cache._ask(settings.MEMCACHED[0], lambda client: None)
    assert tried == [settings.MEMCACHED[0]]
