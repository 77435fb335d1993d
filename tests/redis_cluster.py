"""A real Redis Cluster for tests, configured as in production, on the ports after those of the stack; up in 2 s."""

import os
import subprocess
from pathlib import Path

import redis

from deploy.local.layout import DEPLOY, render
from deploy.local.ports import HOST, OFFSETS
from shardmap import redis_client
from tests.support import eventually

FIRST_PORT = 8030 + OFFSETS[os.environ["STACK"]]
BUS = 5  # a node's port for the others, above its port; so there is room for five nodes
SLOTS = 16384
PASSWORD = "redis"


class RedisCluster:
    """Masters without replicas: `size` of them share the slots, and more can be added."""

    def __init__(self, directory: Path, size: int) -> None:
        self._directory = directory
        self._processes: dict[int, subprocess.Popen] = {}
        self.nodes: dict[int, redis.Redis] = {}
        for number in range(size):
            port = self.add()
            first, last = number * SLOTS // size, (number + 1) * SLOTS // size - 1
            self.nodes[port].execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        eventually(self.is_well, what="the cluster is well")

    @property
    def url(self) -> str:
        return f"redis+cluster://:{PASSWORD}@{','.join(f'{HOST}:{port}' for port in self.nodes)}"

    def add(self) -> int:
        """Starts a node that has no slots and joins it to the others; returns its port."""
        port = FIRST_PORT + len(self.nodes)
        self.nodes[port] = redis.Redis(HOST, port, password=PASSWORD, socket_timeout=5, decode_responses=True)
        self.start(port)
        for node in self.nodes.values():  # each of them: the news would take a second or two from one to the next
            node.execute_command("CLUSTER", "MEET", HOST, port, port + BUS)
        return port

    def start(self, port: int) -> None:
        directory = self._directory / str(port)
        directory.mkdir(exist_ok=True)
        values = {"listen": HOST, "port": port, "password": PASSWORD, "data": directory, "cluster": "yes"}
        values |= {"maxmemory": "100mb", "maxmemory_policy": "noeviction", "appendonly": "yes"}
        (directory / "redis.conf").write_text(render(DEPLOY / "redis/redis.conf", values))
        only_here = {"cluster-port": port + BUS, "cluster-node-timeout": 1000}
        arguments = [text for name, value in only_here.items() for text in (f"--{name}", str(value))]
        with (directory / "log").open("a") as log:
            self._processes[port] = subprocess.Popen(
                ["redis-server", directory / "redis.conf", *arguments], stdout=log, stderr=log
            )
        eventually(lambda: self.answers(port), what=f"Redis on port {port} answers")

    def answers(self, port: int) -> bool:
        try:
            return self.nodes[port].ping()
        except redis.RedisError:
            return False

    def signal(self, port: int, number: int) -> None:
        self._processes[port].send_signal(number)

    def kill(self, port: int) -> None:
        self._processes[port].kill()
        self._processes[port].wait()

    def stop(self) -> None:
        for port in self.nodes:
            self.kill(port)
        redis_client.redis_client.cache_clear()  # the next cluster on these ports is another one

    def empty(self) -> None:
        for node in self.nodes.values():
            node.flushall()

    def is_well(self) -> bool:
        """Do all nodes know each other, and the owner of each slot?"""
        views = [node.execute_command("CLUSTER INFO") for node in self.nodes.values()]
        expected = {"cluster_state": "ok", "cluster_slots_ok": str(SLOTS), "cluster_known_nodes": str(len(views))}
        return all(expected.items() <= view.items() for view in views)

    def move_slots(self, number: int, source: int, target: int) -> None:
        """Moves slots with all that is in them from one node to another, as an operator would."""
        ids = {port: node.execute_command("CLUSTER", "MYID") for port, node in self.nodes.items()}
        command = ["redis-cli", "--cluster", "reshard", f"{HOST}:{FIRST_PORT}", "--cluster-yes", "--cluster-slots"]
        command += [str(number), "-a", PASSWORD, "--cluster-from", ids[source], "--cluster-to", ids[target]]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
