"""A warm page of the home feed through nginx, beside an empty view of the same gunicorn, and beside SQL joins.

The last is what most people would write first: one Postgres, Django REST framework (bench/sql_join), under the same
gunicorn and nginx. All three have the same people, photos, likes and comments; the load is wrk's.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from statistics import median
from urllib.parse import urlsplit

import psycopg2
import requests
from django.conf import settings

from bench import own_stack, world
from deploy.local import programs
from deploy.local.layout import DEPLOY, SERVER_USER, VENV, Stack, make_dir
from deploy.local.ports import HOST

OWN_STACK = True
PLOTTED = ("requests/s",)
ROUNDS, SECONDS = 3, 8
# Until each of the app server's processes has seen everybody whose page is asked for, all but surely.
WARM_UP_REQUESTS = 10 * world.VIEWERS
CONNECTIONS = 32  # as many as gunicorn has threads
PAGE = 20
# wrk's script: each request is one of somebody else; at half of what the server can do, pauses are drawn at random.
LOAD = """
local tokens = {{ {tokens} }}
math.randomseed({seed})
request = function()
    return wrk.format("GET", "{path}", {{ ["Authorization"] = "{scheme} " .. tokens[math.random(#tokens)] }})
end
{delay}
"""
DELAY = "delay = function() return math.random(0, {most}) end"


def run(n: int = world.FEWEST) -> dict[str, float]:
    settings.DATABASE_ANSWER_SECONDS = 600  # a world takes a while to make
    tokens = world.make(n)
    # Past the load balancer: on the other side, too, there is but an nginx.
    edge = f"http://{Stack(own_stack.NAME).address('edge_1')}"
    with _sql_join(n, list(tokens)) as (joins, keys):
        ways = {
            "an empty view": (f"{edge}/healthz", "Bearer", ["-"]),
            "the feed": (f"{edge}/v1/users/self/feed?count={PAGE}", "Bearer", list(tokens.values())),
            "SQL joins": (f"{joins}/feed", "Token", keys),
        }
        for name, (url, scheme, some) in ways.items():
            answer = requests.get(url, headers={"Authorization": f"{scheme} {some[0]}"}, timeout=10)
            answer.raise_for_status()
            if name != "an empty view":
                assert len(answer.json().get("data") or answer.json()["results"]) == PAGE, answer.text
        _wrk(*ways["SQL joins"], SECONDS)
        _warm_up(*ways["the feed"])
        rounds = [{name: _load(*way, SECONDS)[0] for name, way in ways.items()} for _ in range(ROUNDS)]
        rates = {name: median(rates[name] for rates in rounds) for name in ways}
        # Each connection sends one request in this many seconds.
        pause = CONNECTIONS / (rates["the feed"] / 2)
        half, p99 = _load(*ways["the feed"], SECONDS, pause)
    return {
        "people": n,
        "logical shards": settings.LOGICAL_SHARDS,
        **{f"{name}, requests/s": round(rate) for name, rate in rates.items()},
        "the feed / an empty view": round(median(r["the feed"] / r["an empty view"] for r in rounds), 2),
        "the feed / SQL joins": round(median(r["the feed"] / r["SQL joins"] for r in rounds), 1),
        f"ms p99 at {half:.0f} requests/s": p99,
    }


def _load(url: str, scheme: str, tokens: list[str], seconds: int, pause: float = 0) -> tuple[float, float]:
    """Requests a second, and the 99th percentile of their times in ms. Any answer but 200 is an error."""
    out = _wrk(url, scheme, tokens, seconds, pause)
    if "Non-2xx" in out or "Socket errors" in out:
        raise RuntimeError(f"not all requests for {url} were answered:\n{out}")
    value, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", out).groups()
    milliseconds = float(value) * {"us": 0.001, "ms": 1, "s": 1000}[unit]
    return float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]), round(milliseconds, 1)


def _warm_up(url: str, scheme: str, tokens: list[str]) -> None:
    asked = 0
    while asked < WARM_UP_REQUESTS:
        asked += int(re.search(r"(\d+) requests in", _wrk(url, scheme, tokens, SECONDS))[1])


def _wrk(url: str, scheme: str, tokens: list[str], seconds: int, pause: float = 0) -> str:
    """What wrk says after so many seconds of load."""
    if not shutil.which("wrk"):
        raise RuntimeError("this bench needs wrk: apt install wrk")
    parts = urlsplit(url)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        delay = DELAY.format(most=round(2000 * pause)) if pause else ""
        quoted = ", ".join(f'"{token}"' for token in tokens)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        script.write(LOAD.format(tokens=quoted, seed=time.time_ns() % 2**31, path=path, scheme=scheme, delay=delay))
        script.flush()
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout=10s", "--latency"]
        command += [f"-s{script.name}", url]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout


@contextmanager
def _sql_join(n: int, viewers: list[int]) -> Iterator[tuple[str, list[str]]]:
    """The same people in one database and what reads it, for a while: the site's URL, and the viewers' tokens."""
    stack = Stack(own_stack.NAME)
    stack.load_secrets()
    port = {server: stack.ports[server] + 90 for server in ("gunicorn_1", "edge")}
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "bench.sql_join.settings",
        "SQL_JOIN_URL": stack.admin_url("postgres_a", "sql_join"),
        "GUNICORN_BIND": f"{HOST}:{port['gunicorn_1']}",
    }
    with closing(psycopg2.connect(stack.admin_url("postgres_a", "postgres"))) as admin, admin.cursor() as cursor:
        admin.autocommit = True
        cursor.execute("CREATE DATABASE sql_join")
    for migrate in (("migrate", "authtoken"), ("migrate", "--run-syncdb")):
        subprocess.run([sys.executable, "-m", "django", *migrate, "-v0"], env=environment, check=True)
    unchecked = psycopg2.connect(environment["SQL_JOIN_URL"], options=world.UNCHECKED)
    with closing(unchecked) as database, database, database.cursor() as cursor:
        cursor.execute(world.in_one_database(n, viewers))
    data = stack.data("nginx_joins")
    make_dir(data, SERVER_USER)
    nginx = programs.configured(
        stack, "nginx/edge.conf", "nginx_joins.conf", SERVER_USER,
        port=port["edge"], worker_processes=1, data=data, access_log=data / "log",
        **programs.edge_values(stack, "app_servers_joins.conf", [environment["GUNICORN_BIND"]]),
    )  # fmt: skip
    gunicorn = [f"--config={DEPLOY / 'gunicorn/gunicorn.conf.py'}", "django.core.wsgi:get_wsgi_application()"]
    commands = [
        ([str(VENV / "bin/gunicorn"), *gunicorn], None),
        (["nginx", "-e", "stderr", "-c", str(nginx), "-g", "daemon off; master_process off;"], SERVER_USER),
    ]
    with ExitStack() as running:
        for command, user in commands:
            process = running.enter_context(subprocess.Popen(command, env=environment, user=user))
            running.callback(process.terminate)
        is_up = programs.answers(port["edge"], "GET /feed HTTP/1.0\r\n\r\n", "HTTP/1.1 401")
        while not is_up():
            time.sleep(0.1)
        url = f"http://{HOST}:{port['edge']}"
        yield url, [f"bench{viewer}" for viewer in viewers]
