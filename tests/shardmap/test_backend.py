import copy
import socket
import threading

import pytest
from django.conf import settings
from django.db import OperationalError

from shardmap.backend import base


def a_connection() -> base.DatabaseWrapper:
    return base.DatabaseWrapper(copy.deepcopy(settings.DATABASES["a"]), "a")


def test_a_database_that_falls_silent_is_an_error_and_not_a_hang(monkeypatch):
    connection = a_connection()
    with frozen_proxy(connection.settings_dict) as freeze:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            freeze.set()
            monkeypatch.setattr(settings, "DATABASE_ANSWER_SECONDS", 1)
            with pytest.raises(OperationalError, match="no answer"):
                cursor.execute("SELECT 1")
        assert not connection.is_usable()
        connection.close()


def test_a_database_that_never_answers_a_connect_is_an_error(monkeypatch):
    monkeypatch.setattr(base, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection = a_connection()
        connection.settings_dict["PORT"] = silent.getsockname()[1]
        with pytest.raises(OperationalError, match="no answer"):
            connection.ensure_connection()


def test_a_silent_host_is_left_for_the_other_one_of_its_pair(monkeypatch):
    monkeypatch.setattr(base, "CONNECT_SECONDS", 0.5)  # which one host gets
    connection = a_connection()
    description = connection.settings_dict
    with (
        socket.create_server((description["HOST"], 0), backlog=0) as silent,
        socket.create_connection(silent.getsockname()),  # the only one that it takes
    ):
        description["HOST"] = ",".join([description["HOST"]] * 2)
        description["PORT"] = f"{silent.getsockname()[1]},{description['PORT']}"
        description["OPTIONS"] |= {"target_session_attrs": "primary", "tcp_user_timeout": 1000}
        connection.ensure_connection()
        connection.close()


class frozen_proxy:
    """Stands before a database; once the event that it gives is set, it takes everything and passes nothing on."""

    def __init__(self, description: dict) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.target = (description["HOST"], description["PORT"])
        description["PORT"] = self.server.getsockname()[1]
        self.freeze = threading.Event()

    def __enter__(self) -> threading.Event:
        threading.Thread(target=self.accept, daemon=True).start()
        return self.freeze

    def __exit__(self, *error) -> None:
        self.server.close()

    def accept(self) -> None:
        client, _ = self.server.accept()
        database = socket.create_connection(self.target)
        for source, sink in ((client, database), (database, client)):
            threading.Thread(target=self.pump, args=(source, sink), daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(65536):
            if not self.freeze.is_set():
                sink.sendall(data)
