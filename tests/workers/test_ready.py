"""What systemd is told by what it starts with Type=notify (deploy/systemd), so that it knows a start that failed."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.conf import settings

from tests.support import eventually

SECONDS = 30


@contextmanager
def started(directory: Path, *arguments: str, **environment: str) -> Iterator[tuple[socket.socket, subprocess.Popen]]:
    """`manage.py` with these arguments, and the socket on which it tells systemd how it is."""
    path = directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(SECONDS)
        process = subprocess.Popen(
            [sys.executable, settings.BASE_DIR / "manage.py", *arguments],
            env=os.environ | {"NOTIFY_SOCKET": str(path)} | environment,
        )
        try:
            yield systemd, process
        finally:
            process.terminate()
            process.wait(SECONDS)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_a_pool_is_ready_when_each_of_its_processes_waits_for_jobs(tmp_path):
    with started(tmp_path, "worker", "--processes", "2") as (systemd, process):
        assert systemd.recv(100) == b"READY=1"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        titles = [Path(f"/proc/{child}/cmdline").read_text() for child in children]
        assert len(titles) == 2
        # One may have found a job already.
        assert all(title.startswith("worker ") and ": " in title for title in titles), titles


def test_a_relay_is_ready_after_its_first_round_also_while_gearmand_is_away(tmp_path):
    with started(tmp_path, "relay", GEARMAN="127.0.0.1:1") as (systemd, _):
        assert systemd.recv(100) == b"READY=1"


def test_pyapns_is_ready_when_it_listens(tmp_path):
    port = free_port()
    with started(tmp_path, "pyapns", PYAPNS_URL=f"http://127.0.0.1:{port}/") as (systemd, _):
        assert systemd.recv(100) == b"READY=1"
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


@pytest.mark.parametrize("arguments", [("worker", "--processes", "2"), ("relay",)])
def test_what_cannot_start_is_never_ready(tmp_path, arguments):
    with started(tmp_path, *arguments, SHARD_SERVERS="nonsense") as (systemd, process):
        eventually(lambda: process.poll() is not None, SECONDS, "it has ended")
        assert process.returncode != 0
        systemd.setblocking(False)
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
