"""What `fab provision` would bring to each host of our inventory: rendered, and shown to the servers themselves."""

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from fabric import Config
from invoke import Context

from deploy import hosts
from deploy.hosts import INVENTORY, Inventory
from deploy.local.keys import make_certificate
from deploy.local.layout import AS_ROOT, DEPLOY, VENV, Failed, Stack
from deploy.local.machine import postgres_bin, which
from deploy.local.programs import HOST_PLUGINS
from deploy.roles import parts
from deploy.roles.place import APP_SECRETS, SERVER_SECRETS, File, Part, Place
from deploy.roles.watch import plugins
from deploy.upstreams import server_lines
from tests.support import eventually

STACK = Stack(os.environ["STACK"])
SECRETS = {name: f"secret-of-{name}" for name in (*SERVER_SECRETS, *APP_SECRETS)}
# A host of each kind.
NAMES = ("edge1", "app1", "worker1", "db1", "db2", "redis1", "redis4", "cache1", "queue1", "munin1")


@pytest.fixture
def inventory(tmp_path) -> Inventory:
    return on_loopback(tmp_path)


def on_loopback(directory: Path) -> Inventory:
    """Our inventory, with addresses of loopback."""
    numbers = iter(range(1, 200))
    text = re.sub(r"\w+\.internal", lambda _: f"127.0.3.{next(numbers)}", INVENTORY.read_text())
    (directory / "inventory.toml").write_text(text)
    return hosts.load(Context(Config()), str(directory / "inventory.toml"))


def parts_of(inventory: Inventory, name: str, **secrets: object) -> list[Part]:
    host = next(host for host in inventory.hosts if host.name == name)
    return parts(Place(host, inventory, SECRETS | secrets, memory_mb=16_000, cores=8))


def files_of(inventory: Inventory, name: str, **secrets: object) -> dict[str, File]:
    needed = parts_of(inventory, name, **secrets)
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_each_host_of_the_inventory_has_a_way_to_be_reached_by_its_clients(inventory):
    env = files_of(inventory, "app1")["/etc/instagram/env"].text
    settings = dict(line.split("=", 1) for line in env.splitlines())
    addresses = {host.name: host.address for host in inventory.hosts}
    assert f"@{addresses['app1']}:6432/directory" in settings["DIRECTORY_URL"]  # its own pgbouncer
    assert settings["GEARMAN"] == f"{addresses['queue1']}:4730,{addresses['queue2']}:4730"
    assert settings["SHARD_REPLICAS"].count("_replica") == 2
    sentinels = ",".join(f"{addresses[name]}:26379" for name in ("cache1", "queue1", "queue2"))
    assert settings["REDIS_FEEDS_URL"] == f"redis+sentinel://:secret-of-REDIS_PASSWORD@{sentinels}/feeds"


@pytest.mark.parametrize(
    ("host", "port", "may", "may_not"),
    [
        ("db1", 5432, {"app1", "worker1", "db2"}, {"edge1", "cache1", "queue1"}),  # pgbouncers, and the replica
        ("redis3", 6380, {"app1", "worker1", "redis4", "cache1", "queue1", "queue2"}, {"edge1", "redis1", "cache2"}),
        ("queue1", 26379, {"app1", "worker1", "cache1", "queue2"}, {"edge1", "redis1", "db1"}),
    ],
)
def test_the_firewall_lets_in_who_has_to_do_with_it(inventory, host, port, may, may_not):
    rules = files_of(inventory, host)["/etc/instagram/firewall.nft"].text
    (rule,) = [line for line in rules.splitlines() if f" {port} " in line]
    addresses = re.findall(r"127[\d.]+", rule)
    clients = {one.name for one in inventory.hosts if one.address in addresses}
    assert may <= clients
    assert not may_not & clients


def test_the_firewall_lets_everybody_in_at_the_edge(inventory):
    assert "tcp dport { 80, 443 } accept" in files_of(inventory, "edge1")["/etc/instagram/firewall.nft"].text


def test_migrations_go_past_pgbouncer_to_whichever_host_is_the_primary(inventory):
    env = files_of(inventory, "app1")["/etc/instagram/migrations.env"].text
    settings = dict(line.split("=", 1) for line in env.splitlines())
    addresses = {host.name: host.address for host in inventory.hosts}
    pair = f"@{addresses['db1']}:5432,{addresses['db2']}:5432"
    assert settings["DIRECTORY_URL"].endswith(f"{pair}/directory?target_session_attrs=primary")
    assert f"{pair}/shards_a?target_session_attrs=primary b=postgresql://postgres:" in settings["SHARD_ADMINS"]


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


@pytest.fixture
def secured_edge(inventory, tmp_path):
    """nginx as on an edge with a certificate, in front of the stack's app servers."""
    address = next(host.address for host in inventory.hosts if host.name == "edge1")
    for name in ("listen", "tls"):
        with socket.create_server((address, 0)) as server:
            inventory.roles["edge"][name] = server.getsockname()[1]
    make_certificate(tmp_path, "site", address)
    files = files_of(inventory, "edge1", TLS_CERTIFICATE_FILE=tmp_path / "site.pem", TLS_KEY_FILE=tmp_path / "site.key")
    written = write(tmp_path, files)
    written["/srv/instagram/app_servers.conf"].write_text(server_lines(STACK.addresses("gunicorn")))
    for directory in ("var/lib/nginx_edge", "var/log"):
        (tmp_path / directory).mkdir(parents=True)
    command = [which("nginx"), "-e", "stderr", "-c", written["/etc/instagram/nginx_edge.conf"]]
    check(*command, "-t", "-q")
    process = subprocess.Popen([*command, "-g", "daemon off;"])
    plain, secured = (inventory.roles["edge"][name] for name in ("listen", "tls"))
    eventually(lambda: not process.poll() and is_open(address, plain), what="nginx listens")
    yield SimpleNamespace(address=address, plain=plain, secured=secured, process=process, written=written)
    process.terminate()
    process.wait(10)


def is_open(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def handshake(edge: SimpleNamespace, version: ssl.TLSVersion) -> tuple[str, str, bytes]:
    """The versions of TLS and HTTP that nginx agrees to, and its certificate."""
    context = ssl.create_default_context(cafile=edge.written["/etc/instagram/tls.pem"])
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((edge.address, edge.secured), timeout=10) as connection,
        context.wrap_socket(connection, server_hostname=edge.address) as secured,
    ):
        return secured.version(), secured.selected_alpn_protocol(), secured.getpeercert(binary_form=True)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_an_edge_with_a_certificate_speaks_tls(secured_edge, version):
    assert handshake(secured_edge, ssl.TLSVersion[version])[:2] == (version.replace("_", "."), "h2")


def test_the_app_hears_that_a_browser_came_by_tls(secured_edge):
    """It takes a form from a page of the same site only: with TLS, that is another site than without."""
    trusted = secured_edge.written["/etc/instagram/tls.pem"]
    origin = f"https://{secured_edge.address}:{secured_edge.secured}"
    statuses = []
    for port, scheme in ((secured_edge.secured, "https"), (secured_edge.plain, "http")):
        browser = requests.Session()
        page = f"{scheme}://{secured_edge.address}:{port}/accounts/login/"
        token = re.search(
            r'name="csrfmiddlewaretoken" value="(\w+)"', browser.get(page, verify=trusted, timeout=10).text
        )[1]
        form = {"csrfmiddlewaretoken": token, "username": "nobody", "password": "wrong"}
        claims = {"Origin": origin, "Host": origin.removeprefix("https://"), "X-Forwarded-Proto": "https"}
        statuses.append(browser.post(page, data=form, headers=claims, verify=trusted, timeout=10).status_code)
    assert statuses == [200, 403]  # the form again, since nobody may log in so; and none at all


def test_a_new_certificate_is_served_after_a_reload(inventory, secured_edge, tmp_path):
    secrets = {"TLS_CERTIFICATE_FILE": tmp_path / "site.pem", "TLS_KEY_FILE": tmp_path / "site.key"}
    make_certificate(tmp_path, "site", secured_edge.address)
    services = [one for part in parts_of(inventory, "edge1", **secrets) for one in part.services]
    (nginx,) = [one for one in services if "/etc/instagram/tls.pem" in {file.path for file in one.files}]
    assert (nginx.unit, nginx.on_change) == ("instagram-nginx", "reload")
    new = {file.path: file for file in nginx.files if "/tls." in file.path}
    assert {(file.owner, file.mode) for file in new.values()} == {("www-data", 0o600)}
    write(tmp_path, new)
    secured_edge.process.send_signal(signal.SIGHUP)
    served = ssl.PEM_cert_to_DER_cert((tmp_path / "site.pem").read_text())

    def is_served() -> bool:
        try:
            return handshake(secured_edge, ssl.TLSVersion.TLSv1_3)[2] == served
        except (ssl.SSLError, ConnectionError):  # it is still the old one, or is being left at this moment
            return False

    eventually(is_served, what="the new certificate is served")


def test_a_certificate_without_its_key_is_refused_before_any_host_is_touched(inventory, tmp_path):
    for name in ("site", "other"):
        make_certificate(tmp_path, name, "127.0.0.1")
    certificate = tmp_path / "site.pem"
    for key in (tmp_path / "other.key", tmp_path / "missing.key", ""):
        with pytest.raises(Failed, match="are not a certificate and its key"):
            parts_of(inventory, "edge1", TLS_CERTIFICATE_FILE=certificate, TLS_KEY_FILE=key)


def test_without_sentinels_the_app_asks_the_one_redis_that_there_is(inventory):
    for host in inventory.hosts:
        host.roles.pop("sentinel", None)
    with pytest.raises(Failed, match="three hosts need the role sentinel"):
        parts_of(inventory, "redis1")
    inventory.redis = {"shardmap": ["redis1"], "feeds": ["redis3"]}
    env = files_of(inventory, "app1")["/etc/instagram/env"].text
    address = next(host.address for host in inventory.hosts if host.name == "redis3")
    assert f"REDIS_FEEDS_URL=redis://:secret-of-REDIS_PASSWORD@{address}:6380/0\n" in env
    assert parts_of(inventory, "redis3")[1].prepare == []


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


def plugins_of(inventory: Inventory, name: str) -> set[str]:
    host = next(host for host in inventory.hosts if host.name == name)
    return set(plugins(Place(host, inventory, SECRETS, memory_mb=16_000, cores=8)))


def test_each_host_tells_munins_master_and_nobody_else(inventory):
    (master,) = [host.address for host in inventory.of("munin")]
    for host in inventory.hosts:
        files = files_of(inventory, host.name)
        allow = re.search(r"^allow (.+)$", files["/etc/instagram/munin-node.conf"].text, re.MULTILINE)[1]
        assert [one.name for one in inventory.hosts if re.search(allow, one.address)] == ["munin1"]
        assert f"tcp dport 4949 ip saddr {{ {master} }} accept" in files["/etc/instagram/firewall.nft"].text
        assert {"cpu", "df", "load", "memory"} <= plugins_of(inventory, host.name)
    asked = re.findall(r"^\[instagram;(.+)\]\n +address (.+)$", files["/etc/instagram/munin.conf"].text, re.MULTILINE)
    assert asked == [(host.name, host.address) for host in inventory.hosts]


def test_plugins_of_ours_are_where_they_see_something(inventory):
    ours = {host.name: plugins_of(inventory, host.name) - set(HOST_PLUGINS) for host in inventory.hosts}
    fleet = {"instagram_jobs", "instagram_postgres", "instagram_redis"}
    assert ours["app1"] == fleet | {"instagram_app", "instagram_ready", "instagram_pgbouncer"}
    assert ours["app2"] == ours["app1"] - fleet
    assert ours["worker1"] == {"instagram_app", "instagram_pgbouncer"}
    assert ours["db1"] == ours["munin1"] == set()
    assert set.union(*ours.values()) == {file.name for file in (DEPLOY / "munin/plugins").iterdir()}


def test_links_to_plugins_are_made_once_and_others_removed(inventory, tmp_path):
    ((_, done, make),) = parts_of(inventory, "app1")[-1].prepare
    (tmp_path / "bin").mkdir()
    for name, says in {"systemctl": "", "ip": "echo '2: ens5    inet 127.0.3.4/24 scope global ens5'"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    links = tmp_path / "plugins"
    links.mkdir()
    (links / "munin_stats").symlink_to("/usr/share/munin/plugins/munin_stats")  # Debian's package has made it

    def shell(command: str) -> int:
        command = f"PATH={tmp_path}/bin:$PATH; {command.replace('/etc/munin/plugins', str(links))}"
        return subprocess.run(["bash", "-c", command], timeout=30).returncode

    assert shell(done) != 0
    assert shell(make) == 0
    assert shell(done) == 0
    found = {link.name: os.readlink(link) for link in links.iterdir()}
    assert found.keys() == {*plugins_of(inventory, "app1"), "if_ens5"}
    assert found["if_ens5"] == "/usr/share/munin/plugins/if_"
    assert found["instagram_app"] == "/srv/instagram/current/deploy/munin/plugins/instagram_app"


def test_whoever_counts_does_so_where_the_plugins_look(inventory):
    for name in ("app1", "worker1"):
        files = files_of(inventory, name)
        directory = re.search(r"^METRICS_DIR=/run/(.+)$", files["/etc/instagram/munin.env"].text, re.MULTILINE)[1]
        units = [file.text for path, file in files.items() if "User=instagram\n" in file.text]
        assert units
        for unit in units:
            assert f"RuntimeDirectory={directory}\nRuntimeDirectoryPreserve=yes\n" in unit


def test_munins_pages_are_for_their_own_host_alone(inventory, tmp_path):
    conf = write(tmp_path, files_of(inventory, "munin1"))["/etc/instagram/nginx_munin.conf"]
    assert re.findall(r"listen (.+);", conf.read_text()) == ["127.0.0.1:8008"]
    (tmp_path / "var/lib/nginx_munin").mkdir(parents=True)
    check(which("nginx"), "-t", "-q", "-e", "stderr", "-c", conf)
