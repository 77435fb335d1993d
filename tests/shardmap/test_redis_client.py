import socket

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
    of_test = [connection.ask([("CLIENT", "ID")])[0] for connection in connections]
    for connection in connections:
        client.connection_pool.release(connection)
    killer = Redis.from_url(settings.REDIS_SHARDMAP_URL)
    assert [killer.client_kill_filter(_id=one) for one in of_test] == [1, 1, 1]
    assert redis_client.ask(client, [("ECHO", "still here")]) == [b"still here"]
