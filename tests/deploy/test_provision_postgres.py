"""Two bare hosts become a Postgres and its replica: backups, a failover, and `fab provision` after it, all over SSH."""

import os
import re
import subprocess
import threading
import tomllib
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from deploy.hosts import INVENTORY
from deploy.local.layout import ROOT, VENV, Stack
from deploy.roles.place import APP_SECRETS, SERVER_SECRETS
from tests.deploy.bare_host import BareHost, free_port
from tests.deploy.test_provision import toml
from tests.support import eventually

pytestmark = pytest.mark.slow

STACK = Stack(os.environ["STACK"])
STACK.load_secrets()
SECRETS = {name: STACK.secrets.get(name.lower(), "-") for name in (*SERVER_SECRETS, *APP_SECRETS)}
DATA = "/var/lib/instagram/postgres/data"
INI = "/etc/instagram/pgbouncer.databases.ini"


class Pair:
    """db1 and db2, which also has the pgbouncer: the two of a server that has a name, and archive, of its own."""

    def __init__(self, db1: BareHost, db2: BareHost, directory: Path) -> None:
        self.hosts, self.directory = {"db1": db1, "db2": db2}, directory
        self.postgres_port, self.pgbouncer_port = free_port(), free_port()
        self.server = f"x{self.postgres_port}"
        self.secrets = directory / "secrets.env"
        self.secrets.touch(0o600)
        self.secrets.write_text("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
        for host in self.hosts.values():  # believes the stack's S3
            certificates = host.root / "usr/local/share/ca-certificates"
            certificates.mkdir()
            (certificates / "stack.crt").write_text((STACK.conf / "s3.pem").read_text())
        self.write_inventory()

    def write_inventory(self, db2_ssh: int = 0, pgbouncers: tuple[str, ...] = ("db2",), **more: list[str]) -> None:
        """With more servers, of hosts that there are not."""
        inventory = tomllib.loads(INVENTORY.read_text())
        inventory["roles"]["postgres"]["port"] = self.postgres_port
        inventory["roles"]["pgbouncer"]["port"] = self.pgbouncer_port
        known_hosts = self.directory / "known_hosts"
        known_hosts.write_text("".join(host.known_hosts.read_text() for host in self.hosts.values()))
        hosts = {
            name: {"address": host.address, "port": host.port, "roles": ["postgres"]}
            for name, host in self.hosts.items()
        }
        for name in pgbouncers:
            hosts[name]["roles"].append("pgbouncer")
        hosts["db2"]["port"] = db2_ssh or hosts["db2"]["port"]
        for name in (name for pair in more.values() for name in pair):
            hosts[name] = {"address": f"127.0.0.2{name[-1]}", "port": self.pgbouncer_port, "roles": ["postgres"]}
        inventory |= {
            "lock": "db1",
            "migrations": "db1",
            "known_hosts": str(known_hosts),
            "network": "127.0.0.0/8",
            "postgres": {self.server: ["db1", "db2"]} | more,
            "redis": {},
            "hosts": hosts,
        }
        inventory["settings"]["S3_ENDPOINT"] = f"https://127.0.0.1:{STACK.ports['s3_tls']}"
        self.inventory = self.directory / "inventory.toml"
        self.inventory.write_text(toml(inventory))

    def fab(self, *command: str) -> subprocess.CompletedProcess:
        command = [VENV / "bin/fab", "-i", self.hosts["db1"].key, *command, f"--inventory={self.inventory}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)

    def provision(self, name: str) -> subprocess.CompletedProcess:
        return self.fab("provision", f"--name={name}", f"--secrets={self.secrets}")

    def leads(self, name: str) -> dict[str, str]:
        """Where that host's pgbouncer leads: database → address."""
        return dict(re.findall(r"^(\w+) = host=(\S+)", self.hosts[name].run(f"cat {INI}"), re.MULTILINE))

    def sql(self, name: str, statement: str) -> list[tuple]:
        """What the Postgres of that host answers to the superuser."""
        return ask(
            statement, host=self.hosts[name].address, port=self.postgres_port, user="postgres", dbname="postgres",
            password=SECRETS["POSTGRES_PASSWORD"],
        )  # fmt: skip

    def through_pgbouncer(self, statement: str) -> list[tuple]:
        return ask(
            statement, host=self.hosts["db2"].address, port=self.pgbouncer_port, user="instagram",
            dbname=f"shards_{self.server}", password=SECRETS["INSTAGRAM_PASSWORD"],
        )  # fmt: skip

    def followers(self, name: str) -> list[tuple]:
        return self.sql(name, "SELECT application_name, sync_state FROM pg_stat_replication WHERE state = 'streaming'")


def ask(statement: str, **where: object) -> list[tuple]:
    with closing(psycopg2.connect(**where)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


def succeeded(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two_hosts")
    for name in ("db1", "db2"):
        (directory / name).mkdir()
    with (
        BareHost(directory / "db1", "127.0.0.21") as db1,
        BareHost(directory / "db2", "127.0.0.22", like=db1) as db2,
    ):
        yield Pair(db1, db2, directory)


def test_the_first_of_a_new_pair_comes_first(pair):
    done = pair.provision("db2")
    assert done.returncode == 1
    assert f"db1, which is to be the first primary of server {pair.server}, comes before db2" in done.stderr


def test_a_copy_is_not_the_replica_that_a_commit_waits_for(pair):
    succeeded(pair.provision("db1"))
    seen, over = set(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.update(pair.sql("db1", "SELECT application_name, state, sync_state FROM pg_stat_replication"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        succeeded(pair.provision("db2"))
    finally:
        over.set()
        watcher.join()
    assert {sync for name, _, sync in seen if name == "copy"} == {"async"}, seen
    eventually(lambda: pair.followers("db1") == [("replica", "sync")])
    pair.through_pgbouncer("CREATE TABLE one (id int)")


def test_wal_and_backups_reach_s3(pair):
    first = succeeded(pair.fab("backup")).split()
    assert first[:2] == ["db1", "full"]
    archived = "SELECT last_archived_time > coalesce(last_failed_time, '-infinity') FROM pg_stat_archiver"
    eventually(lambda: pair.sql("db1", archived) == [(True,)], 30)
    assert succeeded(pair.fab("backups")).split()[:2] == ["db1", "full"]


def test_the_timers_units_back_up_the_primary_alone(pair):
    for name, made in (("db1", "yes"), ("db2", "no")):
        run = pair.hosts[name].run
        assert run("systemctl list-timers").count("instagram-backup@") == 2 * 2  # the timer, and what it activates
        run("systemctl start instagram-backup@diff")
        shown = run("systemctl show -P Result -P ExecMainStatus instagram-backup@diff").split()
        assert (shown[0] == "success") == (made == "yes"), shown
    kinds = [line.split()[1] for line in succeeded(pair.fab("backups")).splitlines() if line.startswith("db1")]
    assert kinds == ["full", "diff"]


def test_a_failover_and_the_way_back_of_the_old_primary(pair):
    pair.hosts["db1"].run(
        "systemctl kill --kill-who=main --signal=KILL instagram-postgres && systemctl stop instagram-postgres"
    )
    pair.write_inventory(pgbouncers=("db1", "db2"))  # as if one had died with it
    refused = pair.fab("failover", "--server", pair.server)
    assert refused.returncode == 1
    assert "--without db1 " in refused.stderr
    told = succeeded(pair.fab("failover", "--server", pair.server, "--without", "db1"))
    assert "db2 takes writes" in told
    assert "Still lead to db1: db1." in told
    pair.write_inventory()
    pair.through_pgbouncer("INSERT INTO one VALUES (1)")
    assert "db1 follows db2" in succeeded(pair.fab("rejoin", "--server", pair.server))
    eventually(lambda: pair.followers("db2") == [("replica", "sync")])  # Postgres reads its configuration in a moment


def test_a_backup_names_who_is_away(pair):
    pair.write_inventory(db2_ssh=free_port())
    done = pair.fab("backups")
    assert done.returncode == 1
    assert "db2: " in done.stderr
    pair.write_inventory()


def test_after_a_failover_nothing_changes_where_all_is_in_place(pair):
    # But pgbouncer is told once more of the file that `fab failover` has written, and told it of.
    for name, told in (("db1", []), ("db2", ["instagram-pgbouncer runs"])):
        assert re.findall(r" changed +(.+)", succeeded(pair.provision(name)).rpartition("\n ")[0]) == told
    pair.through_pgbouncer("INSERT INTO one VALUES (2)")


def test_a_new_server_reaches_a_pgbouncer_which_leads_on_where_it_led(pair):
    pair.write_inventory(y=["db8", "db9"])
    before = pair.leads("db2")
    assert before[f"shards_{pair.server}"] == "127.0.0.22"
    assert before[f"shards_{pair.server}_replica"] == "127.0.0.21"
    succeeded(pair.provision("db2"))
    assert pair.leads("db2") == before | {"shards_y": "127.0.0.28", "shards_y_replica": "127.0.0.29"}
    pair.write_inventory()


def test_a_new_pgbouncer_leads_where_the_others_lead_or_to_who_has_a_primarys_data(pair):
    db2 = pair.hosts["db2"]
    db2.run(f"sed -i -E 's/127.0.0.28/X/; s/127.0.0.29/127.0.0.28/; s/X/127.0.0.29/' {INI}")  # a failover of y
    pair.write_inventory(pgbouncers=("db1", "db2"), y=["db8", "db9"])
    succeeded(pair.provision("db1"))
    assert pair.leads("db1") == pair.leads("db2")
    assert pair.leads("db1")["shards_y"] == "127.0.0.29"
    pair.write_inventory()
    known = {name: address for name, address in pair.leads("db2").items() if not name.startswith("shards_y")}
    db2.run(f"rm {INI}")
    succeeded(pair.provision("db2"))
    assert pair.leads("db2") == known


def test_an_empty_host_becomes_the_replica_whatever_the_inventorys_order(pair):
    db1 = pair.hosts["db1"]
    db1.run(f"systemctl stop instagram-postgres && rm -rf {DATA}")
    pair.write_inventory(db2_ssh=free_port())
    refused = pair.provision("db1")
    assert refused.returncode == 1
    assert "nobody knows whether db2 is the primary" in refused.stderr
    assert db1.run(f"test -e {DATA} || echo nothing") == "nothing\n"
    pair.write_inventory()
    succeeded(pair.provision("db1"))
    eventually(lambda: pair.followers("db2") == [("replica", "sync")])
    assert pair.sql("db1", "SELECT pg_is_in_recovery()") == [(True,)]


def test_a_replica_whose_primary_is_lost_asks_for_a_failover(pair):
    db2 = pair.hosts["db2"]
    db2.run(f"systemctl stop instagram-postgres && rm -rf {DATA}")
    refused = pair.provision("db2")
    assert refused.returncode == 1
    command = f"failover --server {pair.server} --host-is-off"
    assert f"first `fab {command}`" in refused.stderr
    succeeded(pair.fab(*command.split()))
    succeeded(pair.provision("db2"))
    eventually(lambda: pair.followers("db1") != [])
    assert pair.through_pgbouncer("SELECT count(*) FROM one") == [(2,)]
