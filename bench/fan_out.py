"""Fan-out of a photo by one worker process, from the job in the outbox to the last follower's feed.

Beside it, in the same run and on as large feeds, what else brings a photo to many: redis-py's pipelines on lists and on
sorted sets, and a round trip a feed, as stream-framework's fan-out has it. These three are given the followers; ours
reads them from Postgres, in the order in which they are there: not that of their IDs.
"""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

import psycopg2
from django.conf import settings

from bench import own_stack
from feeds import home
from photos.models import Photo, Status
from shardmap.redis_client import ask_all, redis_client
from shardmap.shards import database_of, schema_name, shard_of, shard_transaction
from workers.models import OutboxJob
from workers.outbox import enqueue

OWN_STACK = True
PLOTTED = ("deliveries/s",)
ROUNDS = 5
OWNER, FIRST = 1, 2  # IDs: followers are those from FIRST on
ENTRIES = 20  # in each feed before: a page
BATCH = 5000  # feeds a pipeline
MOST_PIPELINED, MOST_ONE_BY_ONE = 100_000, 5_000  # feeds: more of them take longer, and are no faster
TRIM_CHANCE = 0.01  # stream-framework trims so many of its feeds
POLL_SECONDS = 0.005
FOLLOWERS = """
    INSERT INTO {schema}.accounts_follower (followee_id, follower_id, status, version)
    SELECT {owner}, id, 2, 1 FROM generate_series({first}, {last}) id ORDER BY random()
"""


def run(n: int = 100_000) -> dict[str, float]:
    settings.DATABASE_ANSWER_SECONDS = 600  # a million followers take a while to make
    redis = redis_client(settings.REDIS_FEEDS_URL)
    redis.config_set("maxmemory", 0)  # of this stack alone, which will be removed
    followers = range(FIRST, FIRST + n)
    _follow(followers)
    old = [home._text((photo, OWNER)) for photo in range(ENTRIES, 0, -1)]
    _fill(lambda follower: ("RPUSH", home._key(follower), *old), followers)
    some = followers[:MOST_PIPELINED]
    ranked = [text for photo in range(ENTRIES) for text in (photo, old[-1 - photo])]
    _fill(lambda follower: ("ZADD", f"ranked:{follower}", *ranked), some)

    def lists(photo: int) -> None:
        for at in range(0, len(some), BATCH):
            with redis.pipeline(transaction=False) as pipeline:
                for follower in some[at : at + BATCH]:
                    pipeline.lpushx(home._key(follower), home._text((photo, OWNER)))
                    pipeline.ltrim(home._key(follower), 0, home.FEED_LENGTH - 1)
                pipeline.execute()

    def sorted_sets(photo: int) -> None:
        for at in range(0, len(some), BATCH):
            with redis.pipeline(transaction=False) as pipeline:
                for follower in some[at : at + BATCH]:
                    pipeline.zadd(f"ranked:{follower}", {home._text((photo, OWNER)): photo})
                    pipeline.zremrangebyrank(f"ranked:{follower}", 0, -home.FEED_LENGTH - 1)
                pipeline.execute()

    def one_by_one(photo: int) -> None:
        for follower in some[:MOST_ONE_BY_ONE]:
            redis.zadd(f"ranked:{follower}", {home._text((photo, OWNER)): photo})
            if random.random() < TRIM_CHANCE:
                redis.zremrangebyrank(f"ranked:{follower}", 0, -home.FEED_LENGTH - 1)

    rates: dict[str, list[float]] = {}
    with _worker() as worker:
        _fan_out()  # what a worker loads at its first photo, it keeps
        before = _memory(worker, "VmRSS")
        (Path("/proc") / str(worker) / "clear_refs").write_text("5")  # the peak counts from here on
        seconds = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            photo = _fan_out()
            seconds.append(time.perf_counter() - began)
            _check_delivered(photo, followers)
            others = {"LPUSHX and LTRIM": lists, "ZADD and ZREMRANGEBYRANK": sorted_sets, "a call a feed": one_by_one}
            for name, deliver in others.items():
                feeds = min(n, MOST_ONE_BY_ONE if deliver is one_by_one else MOST_PIPELINED)
                began = time.perf_counter()
                deliver(photo)
                rates.setdefault(name, []).append(feeds / (time.perf_counter() - began))
        grown = _memory(worker, "VmHWM") - before
    return {
        "followers": n,
        "s for all of them": round(median(seconds), 2),
        "s, fastest": round(min(seconds), 2),
        "one worker, deliveries/s": round(n / median(seconds)),
        **{f"{name}, deliveries/s": round(median(of_round)) for name, of_round in rates.items()},
        "MB that the worker grew": round(grown, 1),
    }


def _follow(followers: range) -> None:
    shard = shard_of(OWNER)
    sql = FOLLOWERS.format(schema=schema_name(shard), owner=OWNER, first=followers[0], last=followers[-1])
    with closing(psycopg2.connect(settings.SHARD_ADMINS[database_of(shard)])) as database, database.cursor() as cursor:
        database.autocommit = True
        cursor.execute(sql)
        cursor.execute(f"VACUUM ANALYZE {schema_name(shard)}.accounts_follower")  # as autovacuum does


def _fill(command: Callable[[int], tuple], followers: Sequence[int]) -> None:
    for at in range(0, len(followers), BATCH):
        ask_all(redis_client(settings.REDIS_FEEDS_URL), [command(follower) for follower in followers[at : at + BATCH]])


def _fan_out() -> int:
    """Has a photo of OWNER's fanned out, and returns its ID when no job is left."""
    with shard_transaction(OWNER):
        photo = Photo.objects.create(owner_id=OWNER, upload_id=f"{time.time_ns():032x}", status=Status.READY)
        enqueue("feeds.fan_out", owner_id=OWNER, photo_id=photo.id)
    while OutboxJob.objects.using(database_of(shard_of(OWNER))).exists():
        time.sleep(POLL_SECONDS)
    return photo.id


def _check_delivered(photo: int, followers: range) -> None:
    entry = home._text((photo, OWNER)).encode()
    for at in range(0, len(followers), BATCH):
        asked = [("LINDEX", home._key(follower), 0) for follower in followers[at : at + BATCH]]
        if any(newest != entry for newest in ask_all(redis_client(settings.REDIS_FEEDS_URL), asked)):
            raise RuntimeError(f"photo {photo} is not on top of each follower's feed")


@contextmanager
def _worker():
    """A worker process, the only one of the stack: its process ID."""
    subprocess.run([*own_stack.STACK, "ctl", "stop", "worker"], check=True)
    with subprocess.Popen([sys.executable, settings.BASE_DIR / "manage.py", "worker", "--processes=1"]) as pool:
        children = Path(f"/proc/{pool.pid}/task/{pool.pid}/children")
        try:
            while not children.read_text():
                time.sleep(POLL_SECONDS)
            yield int(children.read_text())
        finally:
            pool.terminate()


def _memory(pid: int, name: str) -> float:
    """In MB: VmRSS, what a process has, or VmHWM, the most that it had."""
    status = (Path("/proc") / str(pid) / "status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) / 1024
