import socket

import pytest

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
