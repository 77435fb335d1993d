"""A pool of worker processes for jobs that the stack's own workers don't know, and what those jobs have done.

As a program, it is `manage.py worker` with these jobs:  pool.py RUN --processes 2 …
"""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "instagram.settings")
    django.setup()

from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.db.models.functions import Now

from shardmap.redis_client import redis_client
from shardmap.shards import database_of, shard_of, shard_transaction
from tests.support import eventually, new_username
from workers import registry
from workers.models import OutboxJob
from workers.outbox import enqueue_many

USER = 4


class Run:
    """One test's jobs: their names, in the outbox of USER's shard, and in Redis what they have done."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name or f"run_{new_username()}"
        self.redis = redis_client(settings.REDIS_FEEDS_URL)
        self.pools: list[Pool] = []

    def register(self) -> None:
        """The jobs, in the process that does them."""
        registry.job(f"{self.name}.urgent", queue="urgent")(self.note)
        registry.job(f"{self.name}.note")(self.note)
        registry.job(f"{self.name}.poison")(self.poison)
        registry.job(f"{self.name}.fat")(self.fat)
        registry.job(f"{self.name}.bad")(self.bad)

    def note(self, number: int, seconds: float = 0) -> None:
        self.redis.rpush(f"{self.name}:begun", number)
        threading.Event().wait(seconds)
        self.redis.rpush(f"{self.name}:done", f"{number} {os.getpid()}")

    def poison(self, number: int) -> None:
        self.redis.rpush(f"{self.name}:begun", number)
        os.kill(os.getpid(), signal.SIGKILL)

    def fat(self, number: int) -> None:
        self.kept = b"x" * 2**28
        self.note(number)

    def bad(self, number: int, text: str) -> None:
        raise ValueError(text)

    def enqueue(self, job: str, numbers: range, **args) -> None:
        with shard_transaction(USER):
            enqueue_many(f"{self.name}.{job}", [{"number": number, **args} for number in numbers])

    def begun(self) -> list[int]:
        return [int(number) for number in self.redis.lrange(f"{self.name}:begun", 0, -1)]

    def done(self) -> list[int]:
        return [int(line.split()[0]) for line in self.redis.lrange(f"{self.name}:done", 0, -1)]

    def processes(self) -> list[int]:
        """Which process did each of the jobs."""
        return [int(line.split()[1]) for line in self.redis.lrange(f"{self.name}:done", 0, -1)]

    def rows(self):
        return OutboxJob.objects.using(database_of(shard_of(USER))).filter(job__startswith=f"{self.name}.")

    def make_due(self) -> None:
        """What else only the passing of time does: leases end, back-offs pass."""
        self.rows().filter(parked_at=None).update(due_at=Now(), held_until=Now())

    def end_leases_of_the_dead(self) -> None:
        """Of jobs that no living process says it does: it says so before it claims one, and until the row is gone."""
        held = self.rows().filter(parked_at=None, started_at__isnull=False, held_until__gt=Now())
        ids = list(held.values_list("id", flat=True))
        at_work = {title.rpartition(":")[2] for pool in self.pools for title in pool.titles()}
        dead = [row_id for row_id in ids if str(row_id) not in at_work]
        self.rows().filter(id__in=dead).update(due_at=Now(), held_until=Now())

    def pool(self, *arguments: str, **environment: str) -> "Pool":
        pool = Pool(self.name, arguments, environment)
        self.pools.append(pool)
        return pool

    def clean_up(self) -> None:
        for pool in self.pools:
            pool.process.kill()
            pool.process.wait(timeout=10)
        connections.close_all()
        self.rows().delete()
        self.redis.delete(f"{self.name}:begun", f"{self.name}:done")


class Pool:
    """A running `manage.py worker`."""

    def __init__(self, run: str, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, run, *arguments], env=os.environ | environment)
        eventually(lambda: 0 < len(self.children()) == len(self.titles()), 20, "the pool has its processes")

    def children(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []

    def titles(self) -> list[str]:
        """What each process says that it does, once it says so."""
        titles = [title_of(pid) for pid in self.children()]
        return [title for title in titles if re.match(r"worker \d", title)]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=30)


def title_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0 ")
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends between opening and reading
        return ""


def lives(pid: int) -> bool:
    return bool(title_of(pid))


if __name__ == "__main__":
    Run(sys.argv[1]).register()
    call_command("worker", *sys.argv[2:])
