"""Redis and Sentinel from what `fab provision` brings to their hosts: each an address of loopback, and a directory."""

import getpass
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp

import pytest
import redis

from deploy.hosts import Host, Inventory
from deploy.local.layout import SERVER_USER, Stack
from deploy.provision import Steps, put
from deploy.redis_snapshots import Bucket, fetch, take
from deploy.roles.place import Part
from shardmap.redis_client import Client, Unavailable, disconnect, redis_client
from tests.deploy.test_roles import SECRETS, check, files_of, here, on_loopback, parts_of
from tests.redis_cluster import FIRST_PORT
from tests.support import eventually

pytestmark = pytest.mark.slow

STACK = Stack(os.environ["STACK"])
PORTS = {"redis_shardmap": FIRST_PORT + 10, "redis_feeds": FIRST_PORT + 11, "sentinel": FIRST_PORT + 12}
PASSWORD = SECRETS["REDIS_PASSWORD"]


@dataclass
class Here:
    """Stands for a host when files are put there: it is a directory of this machine."""

    name: str

    def run(self, command: str) -> str:
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, timeout=30).stdout

    def write(self, text: str, path: str) -> None:
        Path(path).write_text(text)

    def say(self, text: str) -> None:
        print(self.name, text)


class Hosts:
    """Those of our inventory that have Redis or Sentinel."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.inventory: Inventory = on_loopback(directory)
        for role, port in PORTS.items():
            self.inventory.roles[role]["listen"] = port
        self.hosts: dict[str, Host] = {host.name: host for host in self.inventory.of(*PORTS)}
        self.processes: dict[tuple[str, str], subprocess.Popen] = {}
        env = files_of(self.inventory, "app1")["/etc/instagram/env"].text
        self.settings = dict(line.split("=", 1) for line in env.splitlines())

    def here(self, text: str, name: str) -> str:
        return here(text, self.directory / name)

    def data(self, name: str, unit: str) -> Path:
        return self.directory / name / "var/lib" / unit

    def provision(self, name: str) -> int:
        """Puts the files of a host there; returns how many that changed."""
        steps = Steps(Here(name))
        for path, file in files_of(self.inventory, name).items():
            owner = (SERVER_USER if file.owner == "redis" else None) or getpass.getuser()
            moved = self.here(path, name)
            moved = moved if moved != path else f"{self.directory / name}{path}"
            put(steps, replace(file, path=moved, text=self.here(file.text, name), owner=owner))
        return steps.changed

    def first_steps(self, name: str) -> list[tuple[bool, str]]:
        """How its Redis is told whom to follow, and whether that is done."""
        needed: list[Part] = parts_of(self.inventory, name)
        steps = [step for part in needed for step in part.prepare if " follows " in step[0]]
        return [
            (subprocess.run(["sh", "-c", self.here(done, name)]).returncode == 0, self.here(command, name))
            for _, done, command in steps
        ]

    def start(self, name: str, unit: str) -> None:
        """Runs what the host's unit says, as the user that it is for."""
        template, at, instance = unit.partition("@")
        text = files_of(self.inventory, name)[f"/etc/systemd/system/{template}{at}.service"].text.replace(
            "%i", instance
        )
        data = self.data(name, re.search(r"^StateDirectory=instagram/(.+)$", text, re.MULTILINE)[1])
        data.mkdir(0o700, parents=True, exist_ok=True)
        shutil.chown(data, SERVER_USER or getpass.getuser())
        command = shlex.split(self.here(re.search("^ExecStart=(.+)$", text, re.MULTILINE)[1], name))
        with (self.directory / f"{name}.log").open("a") as log:
            self.processes[name, unit] = subprocess.Popen(
                command, stdout=log, stderr=log, user=SERVER_USER, umask=0o077
            )
        eventually(lambda: self.ask(name, unit, "PING"), what=f"{unit} of {name} answers")

    def end(self, name: str, unit: str, number: int = signal.SIGKILL) -> None:
        process = self.processes.pop((name, unit))
        process.send_signal(number)
        process.wait(20)

    def ask(self, name: str, unit: str, *command: object):
        """What a server answers, or None."""
        port = PORTS[unit.removeprefix("instagram-").removeprefix("redis@")]
        address = self.hosts[name].address
        try:
            with redis.Redis(address, port, password=PASSWORD, socket_timeout=5, decode_responses=True) as client:
                return client.execute_command(*command)
        except redis.RedisError:
            return None

    def role(self, name: str) -> str | None:
        return (self.ask(name, MAP, "ROLE") or [None])[0]

    def has_all(self, replica: str, master: str) -> bool:
        """Whether the replica has what was written to the master."""
        state = self.ask(master, MAP, "INFO", "replication") or {}
        if "slave0" not in state:  # not connected yet, or no more
            return False
        return state["slave0"]["ip"] == self.hosts[replica].address and (
            state["slave0"]["state"],
            state["slave0"]["offset"],
        ) == ("online", state["master_repl_offset"])

    def masters(self) -> set[str]:
        """Whom the Sentinels call the map's master."""
        answers = [self.ask(name, SENTINEL, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "shardmap") for name in SENTINELS]
        return {answer[0] for answer in answers}


MAP, SENTINEL = "instagram-redis@redis_shardmap", "instagram-sentinel"
FIRST, SECOND = "redis1", "redis2"
REDIS = {FIRST: MAP, SECOND: MAP, "redis3": "instagram-redis@redis_feeds", "redis4": "instagram-redis@redis_feeds"}
SENTINELS = ("cache1", "queue1", "queue2")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Hosts]:
    directory = Path(mkdtemp(dir=STACK.dir))  # where the servers' user can look
    directory.chmod(0o755)
    fleet = Hosts(directory)
    try:
        for name, unit in REDIS.items():
            fleet.provision(name)
            todo = fleet.first_steps(name)
            assert [done for done, _ in todo] == ([] if name in ("redis1", "redis3") else [False])
            fleet.start(name, unit)
            for _, command in todo:
                check("sh", "-c", f"systemctl() {{ :; }}; {command}")
        for name in SENTINELS:
            fleet.provision(name)
            fleet.start(name, SENTINEL)
            # 5 s in production.
            fleet.ask(name, SENTINEL, "SENTINEL", "SET", "shardmap", "down-after-milliseconds", 1000)
        eventually(lambda: all(is_watched(fleet, name) for name in SENTINELS), 30, "the Sentinels know all")
        yield fleet
    finally:
        for name, unit in list(fleet.processes):
            fleet.end(name, unit)
        shutil.rmtree(directory)
        redis_client.cache_clear()


def is_watched(fleet: Hosts, sentinel: str) -> bool:
    views = [fleet.ask(sentinel, SENTINEL, "SENTINEL", "MASTER", name) for name in ("shardmap", "feeds")]
    return all(view and int(view["num-other-sentinels"]) == 2 and int(view["num-slaves"]) == 1 for view in views)


@pytest.fixture
def client(fleet) -> Iterator[Client]:
    """The app's own."""
    yield redis_client(fleet.settings["REDIS_SHARDMAP_URL"])
    disconnect()


def is_written(client: Client, key: str) -> bool:
    try:
        return client.set(key, "1")
    except Unavailable:
        return False


def test_a_killed_master_is_replaced_and_provisioning_again_undoes_nothing(fleet, client):
    client.set("before", "1")
    eventually(lambda: fleet.has_all(SECOND, FIRST), what="the replica has it")
    fleet.end(FIRST, MAP)
    eventually(lambda: is_written(client, "after"), 30, "what is written goes to the new master")
    assert fleet.role(SECOND) == "master"
    assert client.get("before") == b"1"

    assert {name: fleet.provision(name) for name in (*REDIS, *SENTINELS)} == dict.fromkeys((*REDIS, *SENTINELS), 0)
    assert [done for name in REDIS for done, _ in fleet.first_steps(name)] == [True, True]
    for name in SENTINELS:
        fleet.end(name, SENTINEL)
        fleet.start(name, SENTINEL)
    assert fleet.masters() == {fleet.hosts[SECOND].address}
    fleet.end(SECOND, MAP, signal.SIGTERM)
    fleet.start(SECOND, MAP)
    fleet.start(FIRST, MAP)  # it takes itself for the master, and nobody asks it
    eventually(lambda: fleet.role(FIRST) == "slave" and fleet.has_all(FIRST, SECOND), 40, "the first is the replica")
    eventually(lambda: is_written(client, "later"), 10, "the app writes")
    assert (fleet.role(SECOND), client.mget("before", "after", "later")) == ("master", [b"1"] * 3)


def test_a_snapshot_is_of_the_replica_and_can_be_loaded_into_a_pair(fleet, client):
    """As docs/backups.md says, "The map's Redis is lost"."""
    STACK.load_secrets()
    bucket = Bucket(STACK.snapshots_environment())
    client.set("kept", "1")
    (master,) = fleet.masters()
    first, second = sorted((FIRST, SECOND), key=lambda name: fleet.hosts[name].address != master)
    eventually(lambda: fleet.has_all(second, first), 40, "the replica has it")
    (snapshot,) = take(fleet.settings["REDIS_SHARDMAP_URL"], bucket)
    assert snapshot.key.endswith(f"-{fleet.hosts[second].address}-{PORTS['redis_shardmap']}.rdb")

    fetch(snapshot.key, bucket, fleet.directory / "map.rdb")
    for name in (second, first):
        fleet.end(name, MAP, signal.SIGTERM)
        for one in fleet.data(name, "redis_shardmap").iterdir():
            shutil.rmtree(one) if one.is_dir() else one.unlink()
    file = fleet.data(first, "redis_shardmap") / "appendonly.aof"
    shutil.copy(fleet.directory / "map.rdb", file)
    shutil.chown(file, SERVER_USER or getpass.getuser())
    fleet.start(first, MAP)
    fleet.start(second, MAP)
    eventually(lambda: fleet.role(second) == "slave" and fleet.has_all(second, first), 40, "the replica follows")
    eventually(lambda: is_written(client, "newer"), 10, "the app writes")
    assert fleet.masters() == {master}
    assert client.get("kept") == b"1"
    fleet.end(first, MAP)  # it is in the file by now
    fleet.start(first, MAP)
    eventually(lambda: fleet.ask(first, MAP, "GET", "kept") == "1", what="the map is there after a restart")
