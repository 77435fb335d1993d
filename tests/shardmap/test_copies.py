"""What a process keeps of the cache is never older than what Memcached would answer."""

import threading

import pytest
from django.conf import settings

from shardmap import cache, copies, redis_client
from tests.redis_cluster import FIRST_PORT, SLOTS, RedisCluster
from tests.shardmap.test_cache import Rows, raw, redis
from tests.support import ctl, eventually

NEW = FIRST_PORT + 3  # a node that has no slots yet


@pytest.fixture
def table() -> Rows:
    rows = Rows()
    rows.rows = {1: "one", 2: "two"}
    return rows


@pytest.fixture(autouse=True)
def request_begun():
    new_request()
    yield
    cache.end_request()


def new_request() -> None:
    cache.end_request()
    cache.begin_request()


def kept(table: Rows, *ids: int) -> dict:
    """Fetches until this process has copies: twice for the sake of a log that has no end yet."""
    for _ in range(3):
        new_request()
        found = table.fetch(*ids)
    new_request()
    assert set(cache.held(table.kind)) >= set(ids)
    return found


def change_elsewhere(table: Rows, row_id: int, value: str) -> None:
    """What another process does."""
    table.rows[row_id] = value
    key = table.kind.key(row_id)
    assert raw(key).delete(key, noreply=False)
    copies.tell([key])


def no_questions(monkeypatch) -> None:
    monkeypatch.setattr(cache, "_get_many", lambda keys, view: pytest.fail(f"Memcached is asked for {keys}"))


def test_a_copy_is_used_without_asking_memcached(table, monkeypatch):
    right = kept(table, 1, 2)
    no_questions(monkeypatch)
    assert table.fetch(1, 2) == right == {1: "one", 2: "two"}


def test_one_question_to_redis_serves_all_fetches_of_a_request(table, monkeypatch):
    right = kept(table, 1)
    table.fetch(1)
    monkeypatch.setattr(copies, "ask", lambda *_: pytest.fail("Redis is asked again"))
    no_questions(monkeypatch)
    assert table.fetch(1) == right


def test_a_change_by_another_process_is_seen_by_the_next_request(table):
    kept(table, 1, 2)
    change_elsewhere(table, 1, "new")
    new_request()
    assert 2 in cache.held(table.kind)
    assert table.fetch(1, 2) == {1: "new", 2: "two"}


def test_a_change_by_the_request_itself_is_seen_by_itself(table):
    kept(table, 1)
    table.fetch(1)
    table.change(1, "new")
    assert table.fetch(1) == {1: "new"}


def test_what_was_read_before_a_change_and_arrives_after_it_is_not_kept(table, monkeypatch):
    kept(table, 1)
    get_many = cache._get_many

    def hear():
        cache.begin_request()
        table.fetch(2)

    def get_and_be_late(keys, view):
        answer = get_many(keys, view)
        change_elsewhere(table, 1, "new")
        another_request = threading.Thread(target=hear)
        monkeypatch.undo()
        another_request.start()  # hears of the change, before the first one keeps what it has read
        another_request.join()
        return answer

    cache._copies.forget([table.kind.key(1)])
    new_request()
    monkeypatch.setattr(cache, "_get_many", get_and_be_late)
    assert table.fetch(1) == {1: "one"}  # it had begun before
    new_request()
    assert table.fetch(1) == {1: "new"}


@pytest.mark.parametrize("lost", ["all", "the end"])
def test_entries_of_the_log_that_are_lost_cost_the_copies(table, lost):
    kept(table, 1, 2)
    change_elsewhere(table, 1, "new")
    if lost == "all":
        redis().delete(copies.LOG)
    else:  # a replica that had not got them all has taken over
        since = cache._copies._last  # heard by us; what the stack's own processes may have told is behind it, too
        redis().xdel(copies.LOG, *(entry for entry, _ in redis().xrange(copies.LOG, since)))
    copies.tell(["something:else"])
    new_request()
    assert table.fetch(1, 2) == {1: "new", 2: "two"}


def test_who_is_too_far_behind_begins_anew(table, monkeypatch):
    kept(table, 1, 2)
    monkeypatch.setattr(copies, "MOST_NEWS", 3)
    for number in range(5):
        copies.tell([f"something:{number}"])
    change_elsewhere(table, 1, "new")
    new_request()
    assert table.fetch(1, 2) == {1: "new", 2: "two"}


def test_after_a_new_connection_to_redis_no_copy_is_believed(table):
    kept(table, 1)
    redis_client.disconnect()
    new_request()
    assert not cache.held(table.kind)
    assert table.fetch(1) == {1: "one"}


def test_without_redis_there_are_no_copies_and_reads_are_right(table, stopped):
    kept(table, 1)
    stopped("redis_feeds")
    table.change(1, "new")
    new_request()
    assert not cache.held(table.kind)
    assert table.fetch(1) == {1: "new"}
    ctl("start", "redis_feeds")

    def has_copies_again() -> bool:
        new_request()
        assert table.fetch(1) == {1: "new"}
        return 1 in cache.held(table.kind)

    eventually(has_copies_again)


def test_copies_take_no_more_room_than_they_may(table, monkeypatch):
    table.rows = dict.fromkeys(range(20), "x" * 1000)
    kept(table, 1)
    monkeypatch.setattr(copies, "MOST_BYTES", 10_000)
    for n in range(20):
        for _ in range(2):
            table.fetch(n)
    assert 5 < len(cache.held(table.kind)) < 10
    assert 19 in cache.held(table.kind)


def test_what_many_changes_make_it_forget_is_not_kept_by_who_began_before(table, monkeypatch):
    kept(table, 1, 2)
    cache._copies.forget([table.kind.key(1)])
    new_request()
    assert set(cache.held(table.kind)) == {2}  # listens
    monkeypatch.setattr(copies, "MOST_CHANGES", 0)
    cache._copies.forget(["something:else"])
    table.fetch(1)
    assert 1 not in cache.held(table.kind)


def test_a_guess_that_was_asked_ahead_is_answered_once(table):
    key = table.kind.prefix
    command = ("INCR", key)
    assert cache.listen(("PING", key), [command]) == key.encode()
    assert cache.ask([command]) == [1]
    assert cache.ask([command]) == [2]
    new_request()
    cache.listen(("PING", key), [command])
    new_request()
    assert cache.ask([command]) == [4]
    assert redis_client.redis_client(settings.REDIS_FEEDS_URL).delete(key)


def test_copies_are_dropped_from_time_to_time(table, monkeypatch):
    monkeypatch.setattr(copies, "MOST_SECONDS", -1)
    table.fetch(1)
    assert 1 in cache.held(table.kind)
    new_request()
    assert not cache.held(table.kind)


def test_what_is_read_out_of_a_request_is_no_copy(table):
    cache.end_request()
    for _ in range(3):
        assert table.fetch(1) == {1: "one"}
        assert not cache.held(table.kind)


def test_a_change_that_redis_missed_for_a_moment_is_told_before_the_answer(table, monkeypatch):
    kept(table, 1)
    tell, silent = copies.tell, [redis_client.redis.TimeoutError("for a moment")] * 2

    def tell_at_last(keys):
        if silent:
            raise silent.pop()
        tell(keys)

    def told() -> list:
        return [
            entry for _, entry in redis().xrange(copies.LOG) if table.kind.key(1).encode() in entry[b"keys"].split()
        ]

    monkeypatch.setattr(copies, "tell", tell_at_last)
    before = told()
    table.change(1, "new")
    assert len(told()) == len(before) + 1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"), 3)
    cluster.add()
    eventually(cluster.is_well, what="all know the new node")
    yield cluster
    cluster.stop()


def test_copies_on_a_cluster_whose_slots_move(table, cluster, monkeypatch):
    monkeypatch.setattr(settings, "REDIS_FEEDS_URL", cluster.url)
    kept(table, 1, 2)
    change_elsewhere(table, 1, "new")
    new_request()
    assert table.fetch(1, 2) == {1: "new", 2: "two"}
    owner = redis().get_node_from_key(copies.LOG).port
    cluster.move_slots(SLOTS // 3, owner, NEW)  # all that it has, or all but one
    change_elsewhere(table, 1, "newer")
    new_request()
    assert table.fetch(1, 2) == {1: "newer", 2: "two"}
    kept(table, 1, 2)
    assert redis().get_node_from_key(copies.LOG).port == NEW


def test_a_process_that_starts_while_no_node_of_a_cluster_answers_reads_all_the_same(table, monkeypatch):
    monkeypatch.setattr(settings, "REDIS_FEEDS_URL", "redis+cluster://:x@127.0.0.1:9,127.0.0.1:10")
    assert isinstance(cache.listen(("GET", "key")), redis_client.Unavailable)
    assert not cache.held(table.kind)
    assert table.fetch(1) == {1: "one"}
