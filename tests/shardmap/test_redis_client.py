import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.conf import settings
from redis import Redis

from shardmap import redis_client


def test_a_silent_redis_is_waited_for_once_and_then_left_alone(monkeypatch):
    monkeypatch.setattr(redis_client, "SECONDS_DOWN", 3600)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = redis_client.redis_client(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        with pytest.raises(redis_client.Unavailable, match=r"(?i)timeout"):
            client.get("key")
        for _ in range(100):  # each of them would take a second
            with pytest.raises(redis_client.Unavailable, match="a moment ago"):
                client.get("key")


def test_one_thread_finds_out_whether_a_silent_redis_is_back_while_the_others_go_on(monkeypatch):
    monkeypatch.setattr(redis_client, "SECONDS_DOWN", 0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = redis_client.redis_client(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        assert isinstance(redis_client.ask(client, [("GET", "key")])[0], redis_client.redis.TimeoutError)
        silent.accept()
        monkeypatch.setattr(redis_client, "SECONDS_DOWN", 3600)
        start = threading.Barrier(10)

        def ask(_) -> bool:
            start.wait()
            return "a moment ago" in str(redis_client.ask(client, [("GET", "key")])[0])

        with ThreadPoolExecutor(10) as pool:
            went_on = list(pool.map(ask, range(10)))
    assert went_on.count(True) == 9


def test_who_is_turned_away_from_a_silent_redis_does_not_put_off_the_next_try(monkeypatch):
    monkeypatch.setattr(redis_client, "SECONDS_DOWN", 60)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        client = redis_client.redis_client(f"redis://{address}/0")
        redis_client.ask(client, [("GET", "key")])
        next_try = redis_client._servers[address]._next_try
        monkeypatch.setattr(redis_client, "SECONDS_DOWN", 3600)
        assert "a moment ago" in str(redis_client.ask(client, [("GET", "key")])[0])
        assert redis_client._servers[address]._next_try == next_try


def fake_server(server: socket.socket, connections: int, answer: Callable[[socket.socket], None]) -> None:
    """Answers the greetings of redis-py, and to GET what is given."""
    for _ in range(connections):
        connection, _ = server.accept()
        while (request := connection.recv(1000)) and b"GET" not in request:
            connection.sendall(b"+OK\r\n" * request.count(b"*"))
        answer(connection)
        connection.close()


def test_a_connection_that_the_server_resets_is_an_unavailable_redis():
    def reset(connection: socket.socket) -> None:
        # As a killed server's kernel does with a request that is still unread.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        server.settimeout(5)
        serving = pool.submit(fake_server, server, 2, reset)
        client = redis_client.redis_client(f"redis://127.0.0.1:{server.getsockname()[1]}/0?protocol=2")
        replies = redis_client.ask(client, [("GET", "one"), ("GET", "two")])
        serving.result(5)  # it was asked once more
    assert len(replies) == 2
    assert all(isinstance(reply, redis_client.Unavailable) for reply in replies)


def test_a_redis_that_falls_silent_after_its_greeting_is_waited_for_once_and_then_left_alone(monkeypatch):
    monkeypatch.setattr(redis_client, "SECONDS_DOWN", 3600)
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        server.settimeout(5)
        serving = pool.submit(fake_server, server, 1, lambda connection: asked.wait(20))
        client = redis_client.redis_client(f"redis://127.0.0.1:{server.getsockname()[1]}/0?protocol=2")
        try:
            (reply,) = redis_client.ask(client, [("GET", "key")])
            assert isinstance(reply, redis_client.redis.TimeoutError), reply
            assert "a moment ago" in str(redis_client.ask(client, [("GET", "key")])[0])
        finally:
            asked.set()
        serving.result()


def test_a_redis_that_is_loading_its_data_is_left_alone():
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        server.settimeout(5)
        serving = pool.submit(
            fake_server,
            server,
            1,
            lambda connection: connection.sendall(b"-LOADING Redis is loading the dataset in memory\r\n"),
        )
        client = redis_client.redis_client(f"redis://127.0.0.1:{server.getsockname()[1]}/0?protocol=2")
        with pytest.raises(redis_client.Unavailable, match="a moment ago"):
            client.get("key")
        serving.result(5)


def test_many_commands_are_answered_in_order_with_an_error_among_them_as_a_value():
    client = redis_client.redis_client(settings.REDIS_SHARDMAP_URL)
    key = "tests:ask"
    try:
        replies = redis_client.ask(
            client, [("SET", key, 5), ("HGET", key, "field"), ("GET", key), ("GET", "tests:none")]
        )
    finally:
        client.delete(key)
    assert isinstance(replies[1], redis_client.Unavailable)
    assert [replies[0], *replies[2:]] == [b"OK", b"5", None]
    assert redis_client.ask(client, []) == []


def test_connections_that_the_server_has_closed_meanwhile_cost_nobody_an_error():
    client = redis_client.redis_client(settings.REDIS_SHARDMAP_URL)
    connections = [client.connection_pool.get_connection() for _ in range(3)]
    of_test = []
    for connection in connections:
        connection.send([("CLIENT", "ID")])
        of_test += connection.receive(1)
        client.connection_pool.release(connection)
    killer = Redis.from_url(settings.REDIS_SHARDMAP_URL)
    assert [killer.client_kill_filter(_id=one) for one in of_test] == [1, 1, 1]
    assert redis_client.ask(client, [("ECHO", "still here")]) == [b"still here"]
