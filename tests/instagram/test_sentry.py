"""An error of ours: what the client is told, what the log says, and what Sentry gets, which is the stack's Bugsink."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import xmlrpc.client

import pytest
import requests
from django.conf import settings

from feeds import home
from shardmap.redis_client import redis_client
from tests import bugsink
from tests.support import eventually, get

HEX = re.compile("[0-9a-f]{32}")
SECRET = "what somebody wrote"
# All that an event of ours may have. Among them is no "request", no "extra", no "modules".
PARTS = {"event_id", "timestamp", "level", "platform", "sdk", "release", "environment", "server_name", "transaction",
         "transaction_info", "exception", "contexts", "tags", "user", "breadcrumbs"}  # fmt: skip


@pytest.fixture
def unlucky(person):
    """Somebody whose feed in Redis holds what nobody can read: each look at it is an error of ours."""
    one = person()
    one.feed()
    key = home._key(one.id)
    redis = redis_client(settings.REDIS_FEEDS_URL)
    redis.lpush(key, "spoilt")
    yield one
    redis.delete(key)


def test_an_error_is_seen_with_release_request_and_user_and_nothing_else_of_them(unlucky):
    headers = {"Authorization": f"Bearer {unlucky.token}", "User-Agent": SECRET, "Cookie": f"a={SECRET}"}
    response = get("/v1/users/self/feed", params={"note": SECRET}, headers=headers)
    assert response.status_code == 500
    request_id = response.headers["X-Request-ID"]
    meta = response.json()["meta"]
    assert (meta["error_type"], HEX.findall(meta["error_message"])) == ("APIError", [request_id])

    event = eventually(lambda: bugsink.event("request_id", request_id), 30, "Bugsink has it")
    assert event["event_id"] == request_id
    assert event["release"] == settings.RELEASE
    assert event["environment"] == os.environ["STACK"]
    assert event["transaction"] == "GET /v1/users/self/feed"
    assert event["tags"] == {"program": "web", "request_id": request_id}
    assert event["user"] == {"id": str(unlucky.id)}
    (error,) = event["exception"]["values"]
    assert error["type"] == "ValueError"
    assert error["value"] == ""
    frames = error["stacktrace"]["frames"]
    assert frames[-1]["filename"] == "feeds/home.py"
    assert not any("vars" in frame for frame in frames)

    assert set(event) <= PARTS
    assert set(event["contexts"]) == {"trace"}
    assert event["breadcrumbs"]["values"] == []
    text = json.dumps(event)
    for personal in (SECRET, unlucky.token, unlucky.username, "spoilt"):
        assert personal not in text

    logs = list((settings.BASE_DIR / f".local/{os.environ['STACK']}/logs").glob("gunicorn_?.log"))
    line = f"ERROR {request_id} instagram.api.dispatch: GET /v1/users/self/feed\n"
    eventually(lambda: any(line in log.read_text() for log in logs))  # supervisord writes them, when it comes to it


def test_a_server_that_is_away_is_told_with_the_requests_id(person, stopped):
    """With some of them: each process makes an event a second, however many requests fail."""
    one = person()
    stopped("pgbouncer")
    for ask, endpoint in (
        (lambda: one.call("GET", "users/search", {"q": one.username}), "GET /v1/users/search"),
        (lambda: get("/p/B/"), "GET /p/{code}"),
    ):
        asked = []

        def seen(ask=ask, asked=asked) -> dict | None:
            response = ask()
            assert response.status_code == 503
            assert HEX.findall(response.text).count(response.headers["X-Request-ID"]) == 1
            asked.append(response.headers["X-Request-ID"])
            return next(filter(None, (bugsink.event("request_id", request_id) for request_id in asked)), None)

        event = eventually(seen, 30)
        assert event["transaction"] == endpoint
        assert event["exception"]["values"][-1]["type"] == "OperationalError"


def test_an_error_of_pyapns_is_seen():
    before = bugsink.event("program", "pyapns")  # of another test
    with (
        xmlrpc.client.ServerProxy(settings.PYAPNS_URL) as pyapns,
        pytest.raises(xmlrpc.client.Fault, match="TypeError"),
    ):
        pyapns.feedback([SECRET])
    event = eventually(lambda: (event := bugsink.event("program", "pyapns")) != before and event, 30)
    assert event["exception"]["values"][-1]["type"] == "TypeError"
    assert SECRET not in json.dumps(event)


def test_a_command_that_fails_is_seen():
    nowhere = {"DIRECTORY_URL": "postgresql://u:p@127.0.0.1:9/none"}
    command = [sys.executable, "manage.py", "staff", "nobody"]
    done = subprocess.run(command, cwd=settings.BASE_DIR, env=os.environ | nowhere, stderr=subprocess.PIPE, timeout=60)
    assert b"OperationalError" in done.stderr
    event = eventually(lambda: bugsink.event("program", "staff"), 30)
    assert event["exception"]["values"][-1]["type"] == "OperationalError"


@pytest.fixture
def silent():
    """The DSN of a Sentry that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://key@127.0.0.1:{server.getsockname()[1]}/1"


@pytest.fixture
def app_of_its_own(silent):
    """A second gunicorn, which tells the silent Sentry."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "gunicorn", "--config=deploy/gunicorn/gunicorn.conf.py", "--workers=1"]
    environment = os.environ | {"SENTRY_DSN": silent, "GUNICORN_BIND": address}
    process = subprocess.Popen(command, cwd=settings.BASE_DIR, env=environment)
    try:
        eventually(lambda: answers(f"http://{address}/healthz"), 60)
        yield f"http://{address}"
    finally:
        process.kill()  # its workers die with it
        process.wait(timeout=10)


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def test_a_sentry_that_is_silent_slows_nobody(unlucky, app_of_its_own):
    """More errors than the queue of what is to be sent can take: by some 50."""
    seconds = []
    with requests.Session() as session:
        for _ in range(150):
            began = time.perf_counter()
            response = session.get(f"{app_of_its_own}/v1/users/self/feed?access_token={unlucky.token}", timeout=20)
            seconds.append(time.perf_counter() - began)
            assert response.status_code == 500
    assert sorted(seconds)[-20] < 0.5  # so most of those 50, too; a few may be slow because the machine is
