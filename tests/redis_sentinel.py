"""Two pairs of real Redis, master and replica, watched by three Sentinels; on ports after those of Redis Cluster."""

import signal
import subprocess
from pathlib import Path

import redis

from deploy.local.layout import DEPLOY, render
from deploy.local.ports import HOST
from shardmap import redis_client
from tests.redis_cluster import FIRST_PORT, PASSWORD
from tests.support import eventually

# Name → (first master's port, its replica's)
NODES = {"shardmap": (FIRST_PORT + 10, FIRST_PORT + 11), "feeds": (FIRST_PORT + 12, FIRST_PORT + 13)}
SENTINELS = (FIRST_PORT + 14, FIRST_PORT + 15, FIRST_PORT + 16)
DOWN_AFTER_MS = 1000  # 5000 in production


class Watched:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: dict[int, subprocess.Popen] = {}
        for master, replica in NODES.values():
            self.start_node(master)
            self.start_node(replica)
            self.ask(replica, "REPLICAOF", HOST, master)
        for port in SENTINELS:
            self._start_sentinel(port)
        eventually(self.is_watched, 20, "the sentinels know each other and the replica")

    def url(self, name: str) -> str:
        return f"redis+sentinel://:{PASSWORD}@{','.join(f'{HOST}:{port}' for port in SENTINELS)}/{name}"

    def start_node(self, port: int) -> None:
        values = {"listen": HOST, "port": port, "password": PASSWORD, "data": self._home(port), "cluster": "no"}
        values |= {"maxmemory": "100mb", "maxmemory_policy": "noeviction", "appendonly": "yes"}
        self._start(port, "redis.conf", values)

    def _start_sentinel(self, port: int) -> None:
        values = {"listen": HOST, "port": port, "password": PASSWORD, "data": self._home(port)}
        values |= {name: f"{HOST} {master}" for name, (master, _) in NODES.items()}
        values |= {"down_after_ms": DOWN_AFTER_MS}
        self._start(port, "sentinel.conf", values, "--sentinel")

    def _home(self, port: int) -> Path:
        home = self._directory / str(port)
        home.mkdir(exist_ok=True)
        return home

    def _start(self, port: int, template: str, values: dict, *arguments: str) -> None:
        file = self._home(port) / template
        file.write_text(render(DEPLOY / "redis" / template, values))
        with (self._home(port) / "log").open("a") as log:
            self._processes[port] = subprocess.Popen(["redis-server", file, *arguments], stdout=log, stderr=log)
        eventually(lambda: self.ask(port, "PING"), what=f"port {port} answers")

    def ask(self, port: int, *command):
        """What a server answers, or None."""
        try:
            with redis.Redis(HOST, port, password=PASSWORD, socket_timeout=5, decode_responses=True) as client:
                return client.execute_command(*command)
        except redis.RedisError:
            return None

    def is_watched(self) -> bool:
        views = [self.ask(port, "SENTINEL", "MASTER", name) for port in SENTINELS for name in NODES]
        return all(view and int(view["num-other-sentinels"]) == 2 and int(view["num-slaves"]) == 1 for view in views)

    def role(self, port: int) -> str | None:
        return (self.ask(port, "ROLE") or [None])[0]

    def has_all(self, replica: int, master: int) -> bool:
        """Whether the replica has what was written to the master."""
        state = self.ask(master, "INFO", "replication") or {}
        if "slave0" not in state:  # not connected yet, or no more
            return False
        return state["slave0"]["port"] == replica and state["slave0"]["offset"] == state["master_repl_offset"]

    def signal(self, port: int, number: int) -> None:
        self._processes[port].send_signal(number)

    def kill(self, port: int) -> None:
        self.signal(port, signal.SIGKILL)
        self._processes[port].wait()

    def stop(self) -> None:
        for port in self._processes:
            self.kill(port)
        redis_client.redis_client.cache_clear()  # the next ones on these ports are others
