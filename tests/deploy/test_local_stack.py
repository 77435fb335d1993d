"""The local stack itself: what it promises in docs/local-stack.md, tried on the stack that the tests run on."""

import ast
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import boto3
import pytest
import redis
import requests
from botocore.config import Config
from django.conf import settings
from django.db import connections

from deploy.local import layout
from deploy.local.ports import HOST, OFFSETS, ports_of, taken_ports
from deploy.local.programs import REPLICAS
from tests.support import ctl, eventually, get

STACK = layout.Stack(os.environ["STACK"])
PROGRAMS = (
    *("postgres_a", "postgres_b", "pgbouncer", "redis_shardmap", "redis_feeds", "memcached_1", "memcached_2"),
    *("gearmand_1", "gearmand_2", "seaweedfs", "haproxy", "nginx_edge_1", "nginx_edge_2", "nginx_edge_3"),
    *("nginx_cdn", "nginx_apns", "social", "bugsink", "gunicorn_1", "gunicorn_2", "pyapns", "worker", "relay"),
    *("munin_node", "pagerduty"),
    *(() if STACK.is_for_tests else ("munin",)),
    *(REPLICAS if layout.WITH_REPLICAS else ()),
)


def stack(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, layout.ROOT / "deploy/local/stack.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def pids() -> dict[str, int]:
    """Each running process of the stack, by its name."""
    found = {}
    for line in stack("status").stdout.splitlines():
        words = line.split()
        if "pid" in words:
            found[words[0]] = int(words[words.index("pid") + 1].rstrip(","))
    return found


def is_ready() -> bool:
    try:
        return get("/readyz").status_code == 200
    except requests.ConnectionError:
        return False


def s3():
    return boto3.client(
        "s3",
        endpoint_url=settings.S3_ENDPOINT,
        aws_access_key_id=settings.S3_ACCESS_KEY,
        aws_secret_access_key=settings.S3_SECRET_KEY,
        region_name="us-east-1",
        config=Config(signature_version="s3v4"),
    )


# The driver


def test_an_old_python_gets_a_sentence():
    # It can only print one if it parses there.
    ast.parse((layout.ROOT / "deploy/local/stack.py").read_text(), feature_version=(3, 0))


def test_no_port_is_used_twice():
    ports = [port for name in OFFSETS for port in ports_of(name).values()]
    assert len(ports) == len(set(ports))


def test_a_taken_port_is_named_with_its_holder():
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        (sentence,) = taken_ports({"memcached_1": port})
    assert f"Port {port} " in sentence
    assert "memcached_1" in sentence
    assert f"process {os.getpid()} (" in sentence
    assert taken_ports({"memcached_1": port}) == []


def test_secrets_are_readable_by_their_users_alone():
    rendered = [path for path in STACK.conf.rglob("*") if path.is_file() and not path.is_symlink()]
    files = [STACK.dir / "env", STACK.dir / "secrets.json", *rendered]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {path.name: "0o600" for path in files}


def test_everything_listens_on_loopback_only():
    ours = {port for server, port in STACK.ports.items() if layout.WITH_REPLICAS or server not in REPLICAS}
    tables = [table for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if table.exists()]
    rows = [row.split() for table in tables for row in table.read_text().splitlines()[1:]]
    addresses = [row[1].split(":") for row in rows if row[3] == "0A"]
    listening = {int(port, 16): address for address, port in addresses if int(port, 16) in ours}
    assert listening == dict.fromkeys(ours, "0100007F")


def test_an_unknown_name_in_a_template_is_an_error(tmp_path):
    template = layout.DEPLOY / "redis/redis.conf"
    with pytest.raises(layout.Failed, match="listen"):
        layout.render(template, {})


@pytest.mark.slow
def test_up_again_changes_nothing():
    before = pids()
    again = stack("up")
    assert again.returncode == 0, again.stdout + again.stderr
    assert pids() == before


def test_another_number_of_logical_shards_is_refused_before_anything_is_touched(monkeypatch):
    monkeypatch.setenv("LOGICAL_SHARDS", "16")
    before = pids()
    done = stack("up")
    assert (done.returncode, pids()) == (1, before)
    assert "has 8 logical shards. To make one of 16" in done.stderr


@pytest.mark.slow
def test_up_after_a_change_of_code_restarts_the_app_alone():
    before = pids()
    (layout.ROOT / "manage.py").touch()
    assert stack("up").returncode == 0
    after = pids()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"gunicorn_1", "gunicorn_2", "pyapns", "worker", "relay"}


def test_status_says_whether_all_run(stopped):
    eventually(lambda: stack("status").returncode == 0, what="what was started a second ago counts as running")
    stopped("memcached_2")
    status = stack("status")
    assert status.returncode == 1
    assert "STOPPED" in next(line for line in status.stdout.splitlines() if line.startswith("memcached_2"))


def test_an_unknown_program_is_named():
    answer = stack("ctl", "stop", "memcached_3")
    assert answer.returncode == 1
    assert "memcached_3" in answer.stderr
    assert "memcached_2" in answer.stderr  # what there is instead


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_killed_program_comes_back(program):
    before = {name: pid for name, pid in pids().items() if name == program}
    ctl("kill", program)

    def is_back() -> bool:
        now = pids()
        return all(now.get(name, pid) != pid for name, pid in before.items())

    eventually(is_back, 20, f"{program} runs again")
    eventually(is_ready, 20, "the site is well")


@pytest.mark.slow
def test_a_killed_supervisor_takes_all_with_it_and_up_recovers():
    key = f"{uuid4()}.jpg"
    s3().put_object(Bucket=settings.S3_PHOTOS_BUCKET, Key=key, Body=b"kept")
    before = pids()
    assert before.keys() == set(PROGRAMS)
    supervisor = int((STACK.dir / "supervisord.pid").read_text())
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before.values()), 10, "all are gone")
    recovered = stack("up")
    assert recovered.returncode == 0, recovered.stdout + recovered.stderr
    assert pids().keys() == before.keys()
    assert is_ready()
    assert s3().get_object(Bucket=settings.S3_PHOTOS_BUCKET, Key=key)["Body"].read() == b"kept"


# What the servers were told


@pytest.mark.parametrize("alias", ["default", "a", "b"])
def test_no_statement_or_transaction_of_the_app_waits_without_end(alias):
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT name, setting::int FROM pg_settings WHERE name IN"
            " ('statement_timeout', 'idle_in_transaction_session_timeout', 'lock_timeout')"
        )
        limits = dict(cursor.fetchall())
    assert limits == {"statement_timeout": 5000, "idle_in_transaction_session_timeout": 15000, "lock_timeout": 3000}


def test_the_map_is_never_evicted_and_outlives_a_restart():
    node = redis.Redis.from_url(settings.REDIS_SHARDMAP_URL, decode_responses=True)
    assert node.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert int(node.config_get("maxmemory")["maxmemory"]) > 0
    assert node.config_get("appendonly") == {"appendonly": "yes"}


def test_the_feeds_begin_anew_with_their_redis():
    node = redis.Redis.from_url(settings.REDIS_FEEDS_URL, decode_responses=True)
    assert node.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
    assert node.config_get("appendonly") == {"appendonly": "no"}


def test_redis_wants_a_password():
    with socket.create_connection((HOST, STACK.ports["redis_shardmap"]), timeout=5) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100).startswith(b"-NOAUTH")


# The edge


def envelope(response: requests.Response) -> tuple[int, str]:
    assert response.headers["Content-Type"].startswith("application/json")
    meta = response.json()["meta"]
    assert meta["code"] == response.status_code
    assert meta["error_message"]
    return meta["code"], meta["error_type"]


@pytest.mark.parametrize(
    ("method", "path", "options", "answer"),
    [
        ("POST", "/v1/media", {"data": b"x" * 1_100_000}, (413, "APIInvalidParametersError")),
        ("GET", "/" + "x" * 20_000, {}, (414, "APIInvalidParametersError")),
        ("GET", "/healthz", {"headers": {"X-Long": "x" * 40_000}}, (400, "APIInvalidParametersError")),
        ("TRACE", "/healthz", {}, (405, "APIInvalidParametersError")),
        ("X", "/healthz", {}, (405, "APIInvalidParametersError")),
        ("GET", "/" + "x" * 8_000, {}, (404, "APINotFoundError")),
        ("GET", "/nothing", {"headers": {f"X-{i}": "x" for i in range(300)}}, (404, "APINotFoundError")),
        ("GET", "/nginx/503", {}, (404, "APINotFoundError")),
    ],
)
def test_what_is_refused_before_the_app_or_nearly_is_an_envelope(method, path, options, answer):
    assert envelope(requests.request(method, settings.SITE_URL + path, timeout=10, **options)) == answer


# The CDN


@pytest.fixture
def photo():
    """The key of an object in the bucket of finished photos."""
    key = f"{uuid4()}/150.jpg"
    s3().put_object(Bucket=settings.S3_PHOTOS_BUCKET, Key=key, Body=b"pixels", ContentType="image/jpeg")
    return key


def cdn(path: str, method: str = "GET", **options) -> requests.Response:
    return requests.request(method, f"{settings.CDN_URL}{path}", timeout=10, **options)


def test_the_second_read_comes_from_the_cache_whatever_the_query_string(photo):
    first, second, third = cdn(f"/{photo}"), cdn(f"/{photo}"), cdn(f"/{photo}?tagging&x={uuid4()}")
    assert [response.headers["X-Cache"] for response in (first, second, third)] == ["MISS", "HIT", "HIT"]
    assert {response.content for response in (first, second, third)} == {b"pixels"}
    assert first.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert first.headers["Content-Type"] == "image/jpeg"


def test_what_the_cache_holds_is_served_while_s3_is_away(photo, stopped):
    assert cdn(f"/{photo}").status_code == 200
    stopped("seaweedfs")
    assert cdn(f"/{photo}").content == b"pixels"
    away = cdn(f"/{uuid4()}.jpg")
    assert away.status_code == 503
    assert away.headers["Cache-Control"] == "no-store"


def test_what_is_not_there_yet_is_not_remembered_as_missing():
    key = f"{uuid4()}.jpg"
    missing = cdn(f"/{key}")
    assert missing.status_code == 404
    assert missing.headers["Cache-Control"] == "no-store"
    s3().put_object(Bucket=settings.S3_PHOTOS_BUCKET, Key=key, Body=b"pixels")
    assert cdn(f"/{key}").status_code == 200


@pytest.mark.parametrize("path", ["", "/", "?list-type=2", "/?list-type=2", "?uploads"])
def test_nobody_lists_the_photos_through_the_cdn(photo, path):
    response = cdn(path)
    assert response.status_code == 404
    assert photo not in response.text


def test_folders_and_other_buckets_are_out_of_the_cdns_reach(photo):
    s3().put_object(Bucket=settings.S3_UPLOADS_BUCKET, Key="original", Body=b"with GPS")
    session = requests.Session()
    folder = photo.split("/")[0]
    for path in (
        f"/{folder}",
        f"/{folder}/",
        "/../uploads/original",
        "/%2e%2e/uploads/original",
        "/..%2fuploads/original",
    ):
        request = requests.Request("GET", settings.CDN_URL).prepare()
        request.url = settings.CDN_URL + path  # as it is, requests would tidy it up
        assert session.send(request, timeout=10).status_code == 404, path


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_the_cdn_only_reads(photo, method):
    assert cdn(f"/{photo}", method).status_code == 405
    assert cdn(f"/{photo}").content == b"pixels"


# S3: what the app relies on


@pytest.mark.parametrize(
    "path",
    ["", "photos", "photos?list-type=2", "photos?versions", "uploads", "uploads?list-type=2", "uploads/original"],
)
def test_strangers_read_no_upload_and_list_no_bucket(path):
    s3().put_object(Bucket=settings.S3_UPLOADS_BUCKET, Key="original", Body=b"with GPS")
    assert requests.get(f"{settings.S3_ENDPOINT}/{path}", timeout=10).status_code == 403


def test_strangers_write_nothing():
    for bucket in (settings.S3_UPLOADS_BUCKET, settings.S3_PHOTOS_BUCKET):
        url = f"{settings.S3_ENDPOINT}/{bucket}/{uuid4()}"
        assert requests.put(url, data=b"x", timeout=10).status_code == 403


def post_upload(size: int = 10, seconds: int = 60, **changed: str) -> int:
    """Uploads by a presigned POST that allows 5 to 100 bytes; returns the status."""
    form = s3().generate_presigned_post(
        settings.S3_UPLOADS_BUCKET,
        f"{uuid4()}",
        Fields={"Content-Type": "image/jpeg"},
        Conditions=[{"Content-Type": "image/jpeg"}, ["content-length-range", 5, 100]],
        ExpiresIn=seconds,
    )
    fields = {**form["fields"], **changed}
    return requests.post(form["url"], data=fields, files={"file": b"x" * size}, timeout=10).status_code


def test_a_presigned_post_is_taken_as_it_was_meant_and_no_other_way():
    assert [post_upload(), post_upload(size=5), post_upload(size=100)] == [204, 204, 204]
    assert [post_upload(size=4), post_upload(size=101)] == [400, 400]
    assert post_upload(seconds=-1) == 403
    assert post_upload(key="another") == 403
    assert post_upload(**{"Content-Type": "text/html"}) == 403
    assert post_upload(**{"x-amz-signature": "0" * 64}) == 403


def test_secrets_survive_another_up():
    secrets = json.loads((STACK.dir / "secrets.json").read_text())
    assert secrets["instagram_password"] in (STACK.dir / "env").read_text()
    assert len(set(secrets.values())) == len(secrets)
