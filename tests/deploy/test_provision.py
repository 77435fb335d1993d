"""`fab provision`: a bare Debian host becomes an app server, and Munin's master."""

import json
import os
import re
import socket
import subprocess
import tomllib
from pathlib import Path

import pytest
import redis
import requests

from deploy.hosts import INVENTORY
from deploy.local.keys import make_certificate
from deploy.local.layout import DEPLOY, ROOT, VENV, Stack
from deploy.roles.place import APP_SECRETS, SERVER_SECRETS
from tests.deploy.bare_host import HOST, BareHost, free_port
from tests.support import ctl, eventually

pytestmark = pytest.mark.slow

STACK = Stack(os.environ["STACK"])
SLOTS = [free_port(), free_port()]
SERVES, STANDS_BY = (f"instagram-gunicorn@{port}" for port in SLOTS)
BACKGROUND = ["instagram-worker", "instagram-relay", "instagram-pyapns"]
UNITS = " ".join([SERVES, STANDS_BY, *BACKGROUND, "instagram-pgbouncer"])
ROLES = ["pgbouncer", "app", "worker", "push", "munin"]
STACK.load_secrets()
SECRETS = {name: STACK.secrets[name.lower()] for name in (*SERVER_SECRETS, *APP_SECRETS) if name != "CREDENTIALS_KEYS"}
SECRETS["CREDENTIALS_KEYS"] = STACK.secrets["credentials_key"]
SECRETS["PAGERDUTY_ROUTING_KEY"] = STACK.secrets["pagerduty_key"][:32]
SECRETS["PAGERDUTY_URL"] = f"http://{STACK.address('pagerduty')}/v2/enqueue"


class Provisioned:
    """A bare host with an inventory in which it is an app server among the servers of the stack."""

    def __init__(self, bare: BareHost, directory: Path) -> None:
        self.bare, self.directory = bare, directory
        self.url = f"http://{HOST}:{SLOTS[0]}"
        self.pgbouncer_port, self.pages_port, self.munin_port = free_port(), free_port(), free_port()
        self.push_port = free_port()
        self.secrets = directory / "secrets.env"
        self.secrets.touch(0o600)
        self.secrets.write_text("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
        self.write_inventory()

    def write_inventory(self, **settings: str) -> None:
        inventory = tomllib.loads(INVENTORY.read_text())
        # The stack's pgbouncer is in Postgres' place, so that there is one port for both servers.
        ports = {"redis_shardmap": "redis_shardmap", "redis_feeds": "redis_feeds", "postgres": "pgbouncer"}
        ports |= {"memcached": "memcached_1", "gearman": "gearmand_1"}
        for role, server in ports.items():
            inventory["roles"][role]["port" if role == "postgres" else "listen"] = STACK.ports[server]
        inventory["roles"]["app"]["slots"] = SLOTS
        inventory["roles"]["push"]["listen"] = self.push_port
        inventory["roles"]["pgbouncer"]["port"] = self.pgbouncer_port
        inventory["roles"]["munin"] |= {"listen": self.pages_port, "node": self.munin_port}
        of_the_stack = STACK.environment()
        inventory |= {
            "known_hosts": str(self.bare.known_hosts),
            "network": "127.0.0.0/8",
            "postgres": {"a": ["stack"], "b": ["stack"]},
            "redis": {"shardmap": ["stack"], "feeds": ["stack"]},
            "settings": {name: of_the_stack[name] for name in ("SITE_URL", "CDN_URL", "S3_ENDPOINT", "LOGICAL_SHARDS")},
            "hosts": {
                "app1": {"address": HOST, "port": self.bare.port, "roles": ROLES},
                "stack": {"address": HOST, "roles": list(ports)},
            },
        }
        inventory["settings"] |= settings
        self.inventory = self.directory / "inventory.toml"
        self.inventory.write_text(toml(inventory))

    def fab(self, *command: str) -> subprocess.CompletedProcess:
        """`fab provision`, or another of its tasks."""
        command = command or ("provision", "--name=app1", f"--secrets={self.secrets}")
        command = [VENV / "bin/fab", "-i", self.bare.key, *command, f"--inventory={self.inventory}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=10)


def toml(tables: dict) -> str:
    """Strings, numbers and lists are written in TOML as in JSON."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in tables.items() if not isinstance(value, dict)]
    for name, table in tables.items():
        if isinstance(table, dict):
            plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in plain.items())]
            lines += [toml({f"{name}.{key}": value}) for key, value in table.items() if isinstance(value, dict)]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def app1(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bare_host")
    with BareHost(directory) as bare:
        host = Provisioned(bare, directory)
        host.first = host.fab()
        yield host


def test_a_bare_host_becomes_an_app_server(app1):
    assert app1.first.returncode == 0, app1.first.stdout + app1.first.stderr
    answer = app1.get("/healthz")
    assert (answer.status_code, answer.text) == (200, "ok\n")
    assert answer.headers["X-Release"] == app1.bare.run("basename $(readlink -f /srv/instagram/current)").strip()
    # It has found the stack's servers, those of Postgres through a pgbouncer of its own.
    ready = app1.get("/readyz")
    assert ready.status_code == 200, ready.text


def changes(done: subprocess.CompletedProcess) -> list[str]:
    """What it says that it has changed."""
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"app1 +changed +(.+)", done.stdout)


def test_again_it_changes_nothing(app1):
    before = app1.bare.run(f"systemctl show -P MainPID {UNITS}")
    again = app1.fab()
    assert changes(again) == []
    assert "app1        0 changed" in again.stdout
    assert app1.bare.run(f"systemctl show -P MainPID {UNITS}") == before


def munin_node(port: int, question: str) -> str:
    with socket.create_connection((HOST, port), 60) as connection:
        connection.sendall(f"cap multigraph\n{question}\nquit\n".encode())
        return connection.makefile().read()


def test_munin_node_has_the_values_of_our_plugins(app1):
    listed = munin_node(app1.munin_port, "list").splitlines()[2].split()
    ours = {file.name for file in (DEPLOY / "munin/plugins").iterdir()}
    assert set(listed) == {*ours, "cpu", "df", "if_lo", "load", "memory"}
    for plugin in ours - {"instagram_postgres"}:  # which asks for replicas, of which the test has none
        said = munin_node(app1.munin_port, f"fetch {plugin}")
        assert ".value " in said, plugin
    assert "away.value 0" in munin_node(app1.munin_port, "fetch instagram_ready")
    # As docs/monitoring.md has it.
    assert "parked.value 0" in app1.bare.run("munin-run --config /etc/instagram/munin-node.conf instagram_jobs")

    def answered() -> int:
        said = munin_node(app1.munin_port, "fetch instagram_app")
        return int(re.search(r"^s2xx.value (\d+)$", said, re.MULTILINE)[1])

    before = answered()
    assert app1.get("/healthz").status_code == 200
    assert app1.get("/developer/openapi.json").status_code == 200
    assert answered() > before


def incidents() -> list[str]:
    found = requests.get(f"http://{STACK.address('pagerduty')}/incidents", timeout=10).json()
    return [incident["dedup_key"] for incident in found]


def test_the_masters_round_draws_the_pages(app1):
    assert app1.bare.run("systemctl is-active instagram-munin.timer") == "active\n"
    app1.bare.run("systemctl start instagram-munin")
    pages = f"http://{HOST}:{app1.pages_port}/munin/instagram/app1"
    shown = requests.get(f"{pages}/index.html", timeout=10)
    assert "instagram_queues-day.png" in shown.text
    assert requests.get(f"{pages}/instagram_queues-day.png", timeout=10).content.startswith(b"\x89PNG")
    app1.bare.run("logrotate --force /etc/logrotate.d/instagram-munin")
    assert "munin-update.log.1" in app1.bare.run("ls /var/lib/instagram/munin/log")


def test_what_is_wrong_is_told_to_pagerduty(app1, stopped):
    ctl("restart", "pagerduty")  # the double forgets earlier runs
    stopped("memcached_1")
    eventually(lambda: "away.value 1" in munin_node(app1.munin_port, "fetch instagram_ready"), 10)
    app1.bare.run(
        "systemctl stop instagram-munin.timer instagram-munin.service"
    )  # a round of its own would be in the way
    for part in ("munin-update --service=instagram_ready", "munin-limits"):
        app1.bare.run(f"runuser -u munin -- /usr/share/munin/{part} --config=/etc/instagram/munin.conf")
    assert "app1/instagram_ready/away" in incidents()
    # An operator, by hand.
    app1.bare.run("/etc/instagram/pagerduty /etc/instagram/pagerduty.settings trigger by-hand info 'a test'")
    assert "by-hand" in incidents()
    app1.bare.run("systemctl start instagram-munin.timer")


def test_a_changed_setting_changes_its_file_and_restarts_who_reads_it(app1):
    pid = f"systemctl show -P MainPID {SERVES}"
    before = app1.bare.run(pid)
    app1.write_inventory(RATE_LIMITS="requests=7")
    files = ["/etc/instagram/munin.env", "/etc/instagram/env"]
    # What serves comes last.
    assert changes(app1.fab()) == [*files, *(f"{unit} runs" for unit in (STANDS_BY, *BACKGROUND, SERVES))]
    assert "RATE_LIMITS=requests=7" in app1.bare.run("cat /etc/instagram/env").splitlines()
    assert app1.bare.run(pid) != before
    assert app1.get("/healthz").status_code == 200


def test_a_killed_app_comes_back(app1):
    pid = f"systemctl show -P MainPID {SERVES}"
    killed = app1.bare.run(pid)
    # The master: its workers die with it, a moment later.
    app1.bare.run(f"systemctl kill --kill-who=main --signal=KILL {SERVES}")

    def is_back() -> bool:
        try:
            return app1.bare.run(pid) not in (killed, "0\n") and app1.get("/healthz").status_code == 200
        except requests.ConnectionError:
            return False

    eventually(is_back, 30, "gunicorn answers again")


def test_it_is_deployed_to_beside_what_serves_and_rolled_back_without_a_restart(app1):
    first = app1.get("/healthz").headers["X-Release"]
    processes = app1.bare.run(f"systemctl show -P MainPID {SERVES}")
    deployed = app1.fab("deploy")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    assert app1.bare.run("readlink /srv/instagram/current").strip() == f"slots/{SLOTS[1]}"
    second = requests.get(f"http://{HOST}:{SLOTS[1]}/healthz", timeout=10).headers["X-Release"]
    assert second != first
    back = app1.fab("rollback")
    assert back.returncode == 0, back.stdout + back.stderr
    assert app1.bare.run("readlink /srv/instagram/current").strip() == f"slots/{SLOTS[0]}"
    assert app1.get("/healthz").headers["X-Release"] == first
    assert app1.bare.run(f"systemctl show -P MainPID {SERVES}") == processes


@pytest.mark.parametrize("unit", BACKGROUND)
def test_what_cannot_start_is_no_success(app1, unit):
    assert app1.bare.run(f"systemctl is-active {unit}").strip() == "active"
    spoil = "cd /etc/instagram && cp -p env env.good && echo SHARD_SERVERS=nonsense >> env"
    try:
        said = app1.bare.run(f"{spoil}; timeout 60 systemctl restart {unit} && echo restarted || echo failed $?")
    finally:
        app1.bare.run(f"mv /etc/instagram/env.good /etc/instagram/env; systemctl restart {unit}")
    assert said.endswith("failed 1\n")


def test_secrets_are_read_by_their_owners_alone_and_told_to_nobody(app1):
    files = app1.bare.run(f"grep -rlE '{'|'.join(SECRETS.values())}' /etc /srv /home /root /var/lib/instagram").split()
    assert "/etc/instagram/env" in files
    modes = app1.bare.run(f"stat -c '%n %a' {' '.join(files)}").splitlines()
    assert [line for line in modes if not line.endswith(" 600")] == []
    told = app1.first.stdout + app1.first.stderr + app1.bare.run("journalctl --no-pager")
    assert [name for name, value in SECRETS.items() if value in told] == []


def test_the_app_is_nobody_to_its_host(app1):
    assert app1.bare.run(f"stat -c %U /proc/$(systemctl show -P MainPID {SERVES})").strip() == "instagram"
    inside = f"nsenter --mount --target $(systemctl show -P MainPID {SERVES}) runuser -u instagram --"
    assert (
        app1.bare.run(f"{inside} touch /srv/instagram/releases/x /etc/x /var/x 2>&1 || echo refused").count("Read-only")
        == 3
    )
    app1.bare.run("visudo -c")
    rights = app1.bare.run("runuser -u deploy -- sudo -n -l").partition("NOPASSWD")[2]
    assert all(f"systemctl {does} {unit}" in rights for does in ("restart", "stop") for unit in (SERVES, STANDS_BY))
    assert app1.bare.run("runuser -u deploy -- sudo -n id 2>&1 || echo refused").endswith("refused\n")
    assert "Booting worker" in app1.bare.run(f"runuser -u deploy -- journalctl -q -u {SERVES}")


def test_the_firewall_is_one_that_the_kernel_takes(app1):
    # In a network of its own: there, it locks out nobody.
    load = "nft -f /etc/instagram/firewall.nft && nft list table inet instagram"
    command = ["unshare", "--net", "chroot", app1.bare.root, "/bin/sh", "-c", f"PATH=/usr/sbin:/usr/bin; {load}"]
    rules = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert rules.returncode == 0, rules.stderr
    assert "policy drop" in rules.stdout
    assert f"tcp dport {app1.bare.port} accept" in rules.stdout  # SSH


def test_secrets_that_others_may_read_are_refused(tmp_path):
    secrets = tmp_path / "secrets.env"
    secrets.write_text("SECRET_KEY=x\n")
    secrets.chmod(0o644)
    done = subprocess.run(
        [VENV / "bin/fab", "provision", f"--secrets={secrets}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"chmod 600 {secrets}" in done.stderr


def test_a_bare_host_becomes_a_replica_a_sentinel_and_an_edge_with_tls(app1, tmp_path):
    """The same host, by another inventory: so this comes last."""
    first, (redis_port, sentinel_port, plain, secured) = "127.0.0.9", (free_port() for _ in range(4))
    inventory = tomllib.loads(app1.inventory.read_text())
    inventory["roles"]["redis_shardmap"]["listen"] = redis_port
    inventory["roles"]["sentinel"]["listen"] = sentinel_port
    inventory["roles"]["edge"] |= {"listen": plain, "tls": secured}
    inventory["redis"]["shardmap"] = ["redis1", "redis2"]
    inventory["hosts"] |= {
        "redis1": {"address": first, "roles": ["redis_shardmap", "sentinel"]},
        "redis2": {"address": HOST, "port": app1.bare.port, "roles": ["redis_shardmap", "sentinel", "edge"]},
        "queue1": {"address": first, "roles": ["sentinel"]},
    }
    app1.inventory.write_text(toml(inventory))
    make_certificate(tmp_path, "site", HOST)
    with app1.secrets.open("a") as secrets:
        secrets.write(f"TLS_CERTIFICATE_FILE={tmp_path}/site.pem\nTLS_KEY_FILE={tmp_path}/site.key\n")
    password = SECRETS["REDIS_PASSWORD"]
    options = ["--bind", first, "--port", str(redis_port), "--requirepass", password, "--dir", str(tmp_path)]
    master = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    provision = ("provision", "--name=redis2", f"--secrets={app1.secrets}")
    try:
        done = app1.fab(*provision)
        assert done.returncode == 0, done.stdout + done.stderr
        with redis.Redis(HOST, redis_port, password=password, decode_responses=True) as replica:
            eventually(lambda: replica.role()[:4] == ["slave", first, redis_port, "connected"], 20, "it has a master")
        with redis.Redis(HOST, sentinel_port, password=password, decode_responses=True) as sentinel:
            eventually(
                lambda: [it["port"] for it in sentinel.sentinel_slaves("shardmap")] == [redis_port], 20, "it is known"
            )
        answer = requests.get(f"https://{HOST}:{secured}/edge-health", verify=tmp_path / "site.pem", timeout=10)
        assert answer.status_code == requests.get(f"http://{HOST}:{plain}/edge-health", timeout=10).status_code == 200
        assert app1.bare.run("systemctl show -P RestartUSec instagram-redis@redis_shardmap").strip() == "15s"
        again = app1.fab(*provision)
        assert again.returncode == 0, again.stdout + again.stderr
        # A container may not change the kernel's settings: there, systemd tries each time.
        assert set(re.findall(r"redis2 +changed +(.+)", again.stdout)) <= {"systemd-sysctl runs"}
        # A lost one's successor follows whom Sentinel calls the master, whatever the inventory's order.
        app1.bare.run("systemctl stop instagram-redis@redis_shardmap && rm -r /var/lib/instagram/redis_shardmap")
        inventory["redis"]["shardmap"] = ["redis2", "redis1"]
        app1.inventory.write_text(toml(inventory))
        successor = app1.fab(*provision)
        assert f"changed    redis_shardmap follows {first}" in successor.stdout, successor.stdout + successor.stderr
    finally:
        master.kill()
        master.wait(10)
