"""Munin: what our plugins say, that the counters are exact, the pages, and what PagerDuty hears of it."""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests
from django.conf import settings
from django.db.models.functions import Now

from deploy.local import layout
from deploy.local.data import prepare_data
from deploy.local.ports import HOST
from deploy.local.programs import munin
from shardmap.metrics import totals
from shardmap.redis_client import redis_client
from tests.redis_sentinel import NODES, SENTINELS, Watched
from tests.support import apns_requests, ctl, eventually, get, jpeg, new_username, settled
from workers.models import OutboxJob
from workers.status import parked

STACK = layout.Stack(os.environ["STACK"])
STACK.load_secrets()
PLUGINS = {file.name for file in (layout.DEPLOY / "munin/plugins").iterdir()}
OURS = f"instagram/{STACK.name}"
AWAY = f"{STACK.name}/instagram_ready/away"
MUNIN = Path("/usr/share/munin")

Fetched = dict[str, dict[str, str]]  # graph → line → value


def node(command: str) -> list[str]:
    """What munin-node answers."""
    with socket.create_connection((HOST, STACK.ports["munin_node"]), 60) as connection:
        connection.sendall(f"cap multigraph\n{command}\nquit\n".encode())
        lines = connection.makefile().read().splitlines()
    assert lines[0] == f"# munin node at {STACK.name}"
    assert lines[1].startswith("cap ")
    return lines[2:]


def fetch(plugin: str) -> Fetched:
    found: Fetched = {}
    for line in node(f"fetch {plugin}"):
        name, _, value = line.partition(" ")
        if name == "multigraph":
            graph = found.setdefault(value, {})
        elif name.endswith(".value"):
            graph[name.removesuffix(".value")] = value
    return found


def counters() -> dict[str, int]:
    """What people have done by now, as the app has counted it: "likes" → 17."""
    found = fetch("instagram_app")
    return {name: int(found[f"instagram_{name}"]["count"]) for name in ("photos", "likes", "signups", "feed")}


def grown(before: dict[str, int]) -> dict[str, int]:
    """What has changed since then."""
    return {name: count - before[name] for name, count in counters().items() if count != before[name]}


# The plugins


def test_munin_node_has_all_plugins():
    assert PLUGINS | {"cpu", "df", "load", "memory"} == set(" ".join(node("list")).split())


@pytest.mark.parametrize("plugin", sorted(PLUGINS))
def test_each_line_of_each_graph_has_a_value(plugin):
    labels = {}
    for line in node(f"config {plugin}"):
        name, _, value = line.partition(" ")
        if name == "multigraph":
            lines = labels.setdefault(value, set())
        elif name.endswith(".label"):
            lines.add(name.removesuffix(".label"))
    assert labels
    found = fetch(plugin)
    assert {graph: set(lines) for graph, lines in found.items()} == labels
    for lines in found.values():
        for value in lines.values():
            assert value == "U" or float(value) >= 0


def test_values_are_those_of_the_servers(person):
    sizes = fetch("instagram_postgres")["instagram_database_size"]
    assert set(sizes) == {"default", "a", "b"}
    assert all(int(float(size)) > 2**20 for size in sizes.values())
    assert set(fetch("instagram_pgbouncer")["instagram_pgbouncer_wait"]) >= {"directory", "shards_a", "shards_b"}
    assert fetch("instagram_ready")["instagram_ready"] == {"away": "0"}
    photographer = person()
    entries = float(fetch("instagram_redis")["instagram_map"]["entries"])

    def has_more() -> bool:  # the jobs of accounts that other tests have deleted may take away some, too
        photographer.take()
        return float(fetch("instagram_redis")["instagram_map"]["entries"]) > entries

    eventually(has_more, 30)
    redis = fetch("instagram_redis")
    assert float(redis["instagram_map_entry"]["bytes"]) > 5
    assert 0 < float(redis["instagram_redis_memory"]["shardmap"]) < 100


def test_what_cannot_be_reached_is_told(stopped):
    stopped("memcached_2")
    eventually(lambda: fetch("instagram_ready")["instagram_ready"] == {"away": "1"}, 20)


def test_an_app_that_says_nothing_is_not_well():
    class Silence(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

    with HTTPServer((HOST, 0), Silence) as server:
        threading.Thread(target=server.handle_request).start()
        done = subprocess.run(
            [sys.executable, layout.DEPLOY / "munin/plugins/instagram_ready"],
            env={**os.environ, "APP_URL": f"http://{HOST}:{server.server_port}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.stdout == "multigraph instagram_ready\naway.value 1\n"


def test_a_redis_without_a_limit_has_the_machines():
    redis = redis_client(settings.REDIS_FEEDS_URL)
    limit = redis.config_get("maxmemory")["maxmemory"]
    redis.config_set("maxmemory", 0)
    try:
        share = fetch("instagram_redis")["instagram_redis_memory"]["feeds"]
    finally:
        redis.config_set("maxmemory", limit)
    assert 0 < float(share) < 100


def test_a_master_that_nobody_could_replace_is_told(tmp_path):
    servers, (_, replica) = Watched(tmp_path), NODES["feeds"]
    urls = {"REDIS_SHARDMAP_URL": servers.url("shardmap"), "REDIS_FEEDS_URL": servers.url("feeds")}

    def told(graph: str) -> list[str]:
        plugin = [sys.executable, layout.DEPLOY / "munin/plugins/instagram_redis"]
        said = subprocess.check_output(plugin, env=os.environ | urls, text=True, timeout=60)
        return said.partition(f"multigraph {graph}\n")[2].partition("multigraph")[0].splitlines()

    try:
        assert told("instagram_redis_replicas") == ["shardmap.value 1", "feeds.value 1"]
        assert told("instagram_redis_sentinels") == ["shardmap.value 3", "feeds.value 3"]
        servers.kill(replica)
        servers.kill(SENTINELS[0])
        eventually(lambda: told("instagram_redis_replicas") == ["shardmap.value 1", "feeds.value 0"], 20)
        assert told("instagram_redis_sentinels") == ["shardmap.value 2", "feeds.value 2"]
    finally:
        servers.stop()


def test_percentiles_and_shares_are_of_what_is_new(person):
    reader = person()
    fetch("instagram_app")
    for _ in range(10):
        reader.get("users/self/feed")
    found = fetch("instagram_app")
    latency = [float(found["instagram_feed_latency"][name]) for name in ("p50", "p95", "p99")]
    assert 0 < latency[0] <= latency[1] <= latency[2] < 10_000
    assert 0 < float(found["instagram_threads"]["busy"]) < 32
    assert found["instagram_errors"] == {"errors": "0.0"}
    assert 0 <= float(found["instagram_cache"]["process"]) <= 100
    assert set(fetch("instagram_app")["instagram_feed_latency"].values()) == {"0"}  # nobody has read since


def test_parked_jobs_of_all_databases_are_seen():
    job = OutboxJob.objects.using("b").create(job=f"tests.{new_username()}", args={}, parked_at=Now())
    expected = len(parked())
    seen = fetch("instagram_jobs")["instagram_parked_jobs"]
    job.delete()
    assert seen == {"parked": str(expected)}


def test_whatever_can_wake_somebody_is_in_the_runbook():
    chapters = set(re.findall(r"^### (.+)$", (layout.ROOT / "docs/monitoring.md").read_text(), re.MULTILINE))
    for plugin in sorted(PLUGINS):
        graph = ""
        for line in node(f"config {plugin}"):
            name, _, value = line.partition(" ")
            graph = value if name == "multigraph" else graph
            assert not name.endswith((".warning", ".critical")) or graph in chapters, line


# The counters


def test_each_is_counted_once(person):
    owner, fan = person(), person()
    fan.follow(owner)
    settled(owner, fan)
    before = counters()
    media = owner.take(jpeg())
    for _ in range(3):
        fan.get("users/self/feed")
    fan.post(f"media/{media['id']}/likes")
    refused = fan.call("POST", "media/17_1/likes")
    assert refused.status_code == 400
    person()
    assert grown(before) == {"photos": 1, "feed": 3, "likes": 1, "signups": 1}


def test_each_push_that_apns_took_is_counted_as_delivered(person):
    def delivered() -> int:
        return int(fetch("instagram_app")["instagram_pushes"]["delivered"])

    def taken() -> int:
        return sum(request["status"] == 200 for request in apns_requests())

    owner, fan = person(), person()
    owner.post("push/devices", token=os.urandom(32).hex(), environment="sandbox")
    media = owner.take()
    settled(owner, fan)
    before, taken_before = delivered(), taken()
    fan.post(f"media/{media['id']}/likes")
    eventually(lambda: 0 < delivered() - before == taken() - taken_before, 20)


@pytest.mark.parametrize("action", ["restart", "kill"])
def test_nothing_is_forgotten_when_gunicorn_starts_anew(person, action):
    reader = person()
    before = counters()
    reader.get("users/self/feed")
    ctl(action, "gunicorn_1", "gunicorn_2")
    eventually(lambda: get("/healthz").status_code == 200, 30)
    reader.get("users/self/feed")
    assert grown(before) == {"feed": 2}


COUNTING = """
import os, sys
from shardmap.metrics import Counter, labelled
apples = labelled(Counter("apples", "", ["kind"]))
for _ in range(1000):
    apples("red").inc()
if os.fork() == 0:
    apples("red").inc(5)
    os._exit(0)
os.wait()
print("counted", flush=True)
sys.stdin.read()
"""


def test_the_dead_leave_their_place_and_what_they_counted(tmp_path):
    def start() -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", COUNTING],
            env={**os.environ, "METRICS_DIR": str(tmp_path)},
            cwd=layout.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "counted\n"
        return process

    living = [start(), start()]
    assert totals(tmp_path) == {("apples_total", "red"): 2 * 1005}
    places = len(list(tmp_path.glob("*.db")))
    assert places in (2, 3)  # a fork has one for as long as it lives
    for signum in (signal.SIGKILL, signal.SIGTERM):
        process = living.pop(0)
        process.send_signal(signum)
        process.communicate(timeout=20)
        living.append(start())
    assert totals(tmp_path) == {("apples_total", "red"): 4 * 1005}
    assert len(list(tmp_path.glob("*.db"))) <= places + 1
    for process in living:
        process.communicate("", timeout=20)


def test_who_may_not_write_there_is_not_kept_from_work(tmp_path):
    command = [sys.executable, "-c", COUNTING]
    environment = {**os.environ, "METRICS_DIR": str(tmp_path / "nowhere")}
    done = subprocess.run(
        command, env=environment, cwd=layout.ROOT, input="", capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "counted\n"), done.stderr


# The master


@pytest.fixture(scope="module")
def master() -> Path:
    """The directory of Munin's master, which has had a round."""
    prepare_data(STACK, munin(STACK))
    a_round()
    return STACK.data("munin")


def a_round() -> None:
    run("sh", STACK.conf / "munin-round")


def look(plugin: str) -> None:
    """The part of a round in which alerts are found, for one plugin."""
    run(MUNIN / "munin-update", "--config", STACK.conf / "munin.conf", "--service", plugin)
    run(MUNIN / "munin-limits", "--config", STACK.conf / "munin.conf")


def run(*command) -> None:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=STACK.data("munin"),
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin"},
        **as_server(),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def as_server() -> dict:
    """How subprocess runs something as the user of the master."""
    user = munin(STACK).user
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}


def incidents(key: str) -> list[dict]:
    found = requests.get(f"http://{STACK.address('pagerduty')}/incidents", timeout=10).json()
    return [incident for incident in found if incident["dedup_key"] == key]


def test_the_pages_have_our_graphs(master):
    assert "instagram" in get("/munin/").text
    page = get(f"/munin/{OURS}/index.html")
    assert page.headers["Content-Type"].startswith("text/html")
    shown = set(re.findall(r"(instagram_\w+)-day\.png", page.text))
    assert {"instagram_likes", "instagram_feed_latency", "instagram_queues", "instagram_map_entry"} <= shown
    for graph in shown:
        picture = get(f"/munin/{OURS}/{graph}-day.png")
        assert picture.content.startswith(b"\x89PNG"), graph
        assert picture.headers["Content-Type"] == "image/png"
    assert "text/css" in get("/munin/static/style-new.css").headers["Content-Type"]


def away() -> list[int]:
    """How many servers each app server cannot reach; the one that a plugin asks may say what was a second ago."""
    answers = [requests.get(f"http://{address}/readyz", timeout=20).text for address in STACK.addresses("gunicorn")]
    return [sum(not line.endswith(": ok") for line in answer.splitlines()) for answer in answers]


def test_what_is_wrong_is_an_incident_until_it_is_well_again(master, stopped):
    earlier = len(incidents(AWAY))
    stopped("memcached_2")
    eventually(lambda: away() == [1, 1], 20)
    look("instagram_ready")
    (incident,) = incidents(AWAY)[earlier:]
    assert (incident["status"], incident["payload"]["severity"]) == ("triggered", "critical")
    assert incident["payload"]["summary"].startswith(f"{STACK.name}: Servers that the app cannot reach: away is 1")
    ctl("start", "memcached_2")
    eventually(lambda: away() == [0, 0], 20)
    look("instagram_ready")
    (incident,) = incidents(AWAY)[earlier:]
    assert incident["status"] == "resolved"
    assert [entry.split()[1] for entry in incident["log"]] == ["trigger", "resolve"]


# The script


@pytest.fixture
def pagerduty(tmp_path):
    """Runs the script with a spool of its own; returns its exit code and what it said. `pagerduty.spool` is that."""
    settings_file = tmp_path / "settings"
    settings_file.write_text(
        f"PAGERDUTY_URL=http://{STACK.address('pagerduty')}/v2/enqueue\n"
        f"PAGERDUTY_ROUTING_KEY={STACK.secrets['pagerduty_key'][:32]}\nPAGERDUTY_SPOOL={tmp_path / 'spool'}\n"
    )

    script = shutil.copy(layout.DEPLOY / "alerts/pagerduty", tmp_path)  # to where any user can read it

    def run(*arguments: str, said: str = "", user: str | None = None) -> tuple[int, str]:
        command = ["/usr/bin/python3", script, settings_file, *arguments]
        done = subprocess.run(command, input=said, capture_output=True, text=True, timeout=60, user=user)
        return done.returncode, done.stderr

    run.settings_file, run.spool = settings_file, tmp_path / "spool"
    return run


def test_trigger_acknowledge_resolve(pagerduty):
    key = new_username()
    for command, status in (
        (("trigger", key, "critical", "it burns"), "triggered"),
        (("trigger", key, "critical", "it still burns"), "triggered"),
        (("acknowledge", key), "acknowledged"),
        (("resolve", key), "resolved"),
    ):
        assert pagerduty(*command) == (0, "")
        (incident,) = incidents(key)
        assert incident["status"] == status
    assert incident["payload"]["summary"] == "it still burns"
    pagerduty("trigger", key, "info", "once more")
    assert [one["status"] for one in incidents(key)] == ["resolved", "triggered"]


def test_what_happens_while_pagerduty_is_away_arrives_later_and_in_order(pagerduty, stopped):
    key = new_username()
    stopped("pagerduty")
    code, said = pagerduty("trigger", key, "critical", "nobody hears me")
    assert code == 1
    assert "is kept" in said
    assert pagerduty("resolve", key)[0] == 1
    ctl("start", "pagerduty")
    assert incidents(key) == []
    assert pagerduty("flush") == (0, "")
    (incident,) = incidents(key)
    assert [entry.split()[1] for entry in incident["log"]] == ["trigger", "resolve"]
    assert list(pagerduty.spool.glob("*.json")) == []


def test_what_pagerduty_will_never_take_keeps_nothing_else_from_it(pagerduty):
    key = new_username()
    code, said = pagerduty("trigger", key, "critical", "")
    assert (code, incidents(key)) == (1, [])
    assert "'payload.summary'" in said
    assert pagerduty("trigger", key, "critical", "better") == (0, "")
    assert incidents(key)


def test_munins_line_becomes_an_event_for_each_line_of_the_graph(pagerduty):
    host = new_username()
    line = f"{host}\tdf\tDisk\t_a _b\ta is 99|b is 98\t_c\tc is 90\t_d\td is unknown\t\t"
    assert pagerduty("munin", said=f"{line}\n\n") == (0, "")
    severities = {name: incidents(f"{host}/df/{name}")[0]["payload"]["severity"] for name in ("_a", "_b", "_c", "_d")}
    assert severities == {"_a": "critical", "_b": "critical", "_c": "warning", "_d": "error"}
    assert incidents(f"{host}/df/_b")[0]["payload"]["summary"] == f"{host}: Disk: b is 98"
    assert pagerduty("munin", said=f"{host}\tdf\tDisk\t\t\t\t\t\t\t_a\ta is 1\n") == (0, "")
    assert [incidents(f"{host}/df/{name}")[0]["status"] for name in ("_a", "_b")] == ["resolved", "triggered"]


def test_a_line_that_is_none_of_munins_keeps_no_other_from_it(pagerduty):
    host = new_username()
    well = f"{host}\tdf\tDisk\t_a\ta is 99\t\t\t\t\t\t\n"
    code, said = pagerduty("munin", said=f"{host}\tdf\tDisk\t_b\n{well}")
    assert code == 1
    assert f"'{host}\\tdf\\tDisk\\t_b\\n'" in said
    assert [len(incidents(f"{host}/df/{name}")) for name in ("_a", "_b")] == [1, 0]


def test_without_a_key_the_log_alone_is_told(pagerduty):
    key = new_username()
    text = pagerduty.settings_file.read_text()
    pagerduty.settings_file.write_text(re.sub("ROUTING_KEY=.*", "ROUTING_KEY=", text))
    code, said = pagerduty("trigger", key, "critical", "it burns")
    assert (code, incidents(key)) == (0, [])
    assert "it burns" in said
    assert list(pagerduty.spool.glob("*.json")) == []


@pytest.mark.skipif(not layout.AS_ROOT, reason="only root becomes somebody else")
def test_root_leaves_nothing_that_the_owner_could_not_send(pagerduty, stopped):
    key, directory = new_username(), pagerduty.spool.parent
    for path in (*directory.parents[:3], directory, pagerduty.settings_file):
        path.chmod(0o755)
    for path in (directory, pagerduty.settings_file):
        shutil.chown(path, layout.SERVER_USER)
    stopped("pagerduty")
    assert pagerduty("trigger", key, "critical", "root tells it")[0] == 1
    assert {file.owner() for file in (pagerduty.spool, *pagerduty.spool.iterdir())} == {layout.SERVER_USER}
    refused = pagerduty("flush", user="daemon")
    assert refused[0] == 1
    assert "as that one, or as root" in refused[1]
    ctl("start", "pagerduty")
    assert pagerduty("flush") == (0, "")
    assert [one["status"] for one in incidents(key)] == ["triggered"]
