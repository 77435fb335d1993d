"""What `fab provision` would bring to each host of our inventory: rendered, and shown to the servers themselves."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fabric import Config
from invoke import Context

from deploy import hosts
from deploy.hosts import INVENTORY, Inventory
from deploy.local.layout import AS_ROOT, VENV
from deploy.local.machine import postgres_bin, which
from deploy.roles import APP_SECRETS, SERVER_SECRETS, File, Part, Place, parts

SECRETS = {name: f"secret-of-{name}" for name in (*SERVER_SECRETS, *APP_SECRETS)}
# A host of each kind.
NAMES = ("edge1", "app1", "worker1", "db1", "db2", "redis1", "redis2", "cache1", "queue1")


@pytest.fixture
def inventory(tmp_path) -> Inventory:
    """Our own, with addresses of loopback."""
    numbers = iter(range(1, 200))
    text = re.sub(r"\w+\.internal", lambda _: f"127.0.3.{next(numbers)}", INVENTORY.read_text())
    (tmp_path / "inventory.toml").write_text(text)
    return hosts.load(Context(Config()), str(tmp_path / "inventory.toml"))


def parts_of(inventory: Inventory, name: str) -> list[Part]:
    host = next(host for host in inventory.hosts if host.name == name)
    return parts(Place(host, inventory, SECRETS, memory_mb=16_000, cores=8))


def files_of(inventory: Inventory, name: str) -> dict[str, File]:
    needed = parts_of(inventory, name)
    files = [file for part in needed for file in part.files]
    files += [file for part in needed for service in part.services for file in service.files]
    return {file.path: file for file in files}


def here(text: str, directory: Path) -> str:
    """A text in which a host's directories are below one of ours, and the release's programs are our own."""
    text = re.sub(r"/srv/instagram/(current|slots/%i)/.venv", str(VENV), text)
    return re.sub(r"/(etc|srv|var/lib|var/log)/instagram", rf"{directory}/\1", text)


def write(directory: Path, files: dict[str, File]) -> dict[str, Path]:
    written = {}
    for path, file in files.items():
        moved = here(path, directory)
        copy = Path(moved) if moved != path else directory / path.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(here(file.text, directory))
        written[path] = copy
    return written


def check(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_each_host_of_the_inventory_has_a_way_to_be_reached_by_its_clients(inventory):
    env = files_of(inventory, "app1")["/etc/instagram/env"].text
    settings = dict(line.split("=", 1) for line in env.splitlines())
    addresses = {host.name: host.address for host in inventory.hosts}
    assert f"@{addresses['app1']}:6432/directory" in settings["DIRECTORY_URL"]  # its own pgbouncer
    assert settings["GEARMAN"] == f"{addresses['queue1']}:4730,{addresses['queue2']}:4730"
    assert settings["SHARD_REPLICAS"].count("_replica") == 2
    rules = files_of(inventory, "db1")["/etc/instagram/firewall.nft"].text
    (rule,) = [line for line in rules.splitlines() if "5432" in line]
    clients = {name for name, address in addresses.items() if address in re.findall(r"127[\d.]+", rule)}
    assert {"app1", "worker1", "db2"} <= clients  # pgbouncers, and the replica
    assert not clients & {"edge1", "cache1", "queue1"}


@pytest.mark.parametrize("name", NAMES)
def test_only_files_of_their_readers_hold_secrets(inventory, name):
    files = files_of(inventory, name).values()
    assert files
    assert [file.path for file in files if "secret-of-" in file.text and file.mode != 0o600] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_systemd_understands_our_units(inventory, name, tmp_path):
    written = write(tmp_path, files_of(inventory, name))
    units = [path for path in written.values() if path.suffix == ".service"]
    check("systemd-analyze", "verify", "--man=no", *units)


def test_nginx_understands_its_configuration(inventory, tmp_path):
    written = write(tmp_path, files_of(inventory, "edge1"))
    for directory in ("var/lib/nginx_edge", "var/log"):
        (tmp_path / directory).mkdir(parents=True, exist_ok=True)
    check(which("nginx"), "-t", "-q", "-e", "stderr", "-c", written["/etc/instagram/nginx_edge.conf"])


def test_postgres_has_its_share_of_the_hosts_memory(inventory, tmp_path):
    conf = write(tmp_path, files_of(inventory, "db4"))["/etc/instagram/postgresql.conf"]
    conf.chmod(0o644)
    for directory in (tmp_path, *tmp_path.parents[:3], conf.parent):
        directory.chmod(0o755)
    (tmp_path / "data").mkdir()
    asked = [postgres_bin() / "postgres", f"--config-file={conf}", "-D", tmp_path / "data", "-C", "shared_buffers"]
    as_postgres = ["runuser", "-u", "postgres", "--"] if AS_ROOT else []
    assert check(*as_postgres, *asked).split()[0] == str(4000 * 1024 // 8)  # a quarter, in pages of 8 kB


def test_a_new_postgres_has_our_roles_and_databases(inventory, tmp_path):
    part = parts_of(inventory, "db1")[1]
    written = write(tmp_path, {file.path: file for file in part.files})
    ((_, _, command),) = part.prepare
    if AS_ROOT:
        for path in (tmp_path, *tmp_path.parents[:3], *written.values()):
            path.chmod(0o755)
    else:
        command = command.replace("-o postgres ", "").replace("runuser -u postgres -- ", "")
    check("sh", "-c", here(command, tmp_path).replace("/usr/lib/postgresql/15/bin", str(postgres_bin())))
    data = tmp_path / "var/lib/postgres/data"
    try:
        as_postgres = ["runuser", "-u", "postgres", "--"] if AS_ROOT else []
        single = [*as_postgres, postgres_bin() / "postgres", "--single", "-D", data, "postgres"]
        sql = "SELECT rolname FROM pg_roles WHERE rolcanlogin\nSELECT datname FROM pg_database\n"
        done = subprocess.run(single, input=sql, capture_output=True, text=True, timeout=30)
    finally:
        shutil.rmtree(data)
    assert {"instagram", "replicator", "directory", "shards_a"} <= set(re.findall(r'= "(\w+)"', done.stdout))
