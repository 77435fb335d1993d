"""`fab deploy` and its sisters, on ten hosts (tests/deploy/fleet.py), while people use the site."""

import re
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from deploy import shipping
from deploy.record import live_releases
from deploy.shipping import Build, install, prune, requirements_of
from tests.deploy.fleet import NAMES, Fleet
from tests.support import Person, eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Ten hosts that run the first release."""
    root = Path(tempfile.mkdtemp(prefix="fleet-"))
    root.chmod(0o755)  # nginx' workers are nobody
    fleet = Fleet(root)
    try:
        fleet.make()
        fleet.fab("deploy")
        yield fleet
    finally:
        fleet.remove()


class Load:
    """Some who read a photo and some who comment on it, all the time, each request over a connection of its own."""

    def __init__(self, url: str, photographer: Person, media: str) -> None:
        self.url, self.headers = url, {"Authorization": f"Bearer {photographer.token}"}
        self.media = media
        self.commented: list[str] = []
        self.reads = 0
        self.failures: list[str] = []
        self.stop = threading.Event()

    def __enter__(self) -> "Load":
        self.pool = ThreadPoolExecutor(4)
        self.work = [self.pool.submit(self.read), self.pool.submit(self.read)]
        self.work += [self.pool.submit(self.comment, n) for n in range(2)]
        return self

    def __exit__(self, *_) -> None:
        self.stop.set()
        self.pool.shutdown()
        for work in self.work:
            work.result()

    def ask(self, method: str, path: str, **options) -> bool:
        try:
            url = f"{self.url}/v1/media/{self.media}{path}"
            response = requests.request(method, url, headers=self.headers, timeout=20, **options)
        except requests.RequestException as error:
            self.failures.append(f"{method} {path}: {error!r}")
            return False
        if response.status_code != 200:
            self.failures.append(f"{method} {path}: {response.status_code} {response.text}")
        return response.status_code == 200

    def count(self) -> int:
        """How many comments the photo has."""
        answer = requests.get(f"{self.url}/v1/media/{self.media}", headers=self.headers, timeout=20)
        return answer.json()["data"]["comments"]["count"]

    def read(self) -> None:
        while not self.stop.wait(0.1):
            self.reads += self.ask("GET", "")

    def comment(self, number: int) -> None:
        n = 0
        while not self.stop.wait(0.5):
            n += 1
            text = f"{number} {n}"
            if self.ask("POST", "/comments", data={"text": text}):
                self.commented.append(text)


def test_ten_hosts_under_load_are_deployed_to_and_rolled_back_without_a_failed_request(fleet):
    photographer = Person()
    media = photographer.take()["id"]
    first = fleet.current("app1")
    fleet.commit("The second release")
    with Load(fleet.url, photographer, media) as load:
        began = time.monotonic()
        deploying = fleet.start_fab("deploy")
        eventually((fleet.host("app1") / "lock").exists, 30, "the first deploy has the lock")
        refused = fleet.fab("deploy", succeeds=False)
        said, _ = deploying.communicate(timeout=400)
        seconds_to_deploy = time.monotonic() - began
        assert deploying.returncode == 0, said
        second = fleet.current("app1")
        assert [fleet.current(name) for name in NAMES] == [second] * 10
        assert second != first
        began = time.monotonic()
        fleet.fab("rollback")
        seconds_to_roll_back = time.monotonic() - began
        assert [fleet.current(name) for name in NAMES] == [first] * 10
    print(
        f"\ndeploy {seconds_to_deploy:.1f} s, rollback {seconds_to_roll_back:.1f} s, "
        f"meanwhile {load.reads} reads and {len(load.commented)} comments\n{said}"
    )
    assert load.failures == []
    assert load.reads > 0
    # What was answered with 200 is there, once.
    assert load.count() == len(load.commented) > 0
    assert "Only one at a time" in refused
    assert re.search(r"@\S+ deploys since", refused)  # who it is


def test_a_sick_release_stops_at_the_first_host_and_the_others_never_see_it(fleet):
    healthy = fleet.current("app1")
    processes = {name: fleet.gunicorns(name) for name in NAMES}
    edge = fleet.app_servers()
    with fleet.changed("instagram/api/health.py", 'HttpResponse("ok\\n"', 'HttpResponse(1 / 0, "ok\\n"'):
        said = fleet.fab("deploy", succeeds=False)
    assert "/healthz answers 500" in said
    assert "app1 was put back" in said
    assert fleet.current("app1") == healthy
    assert {name: fleet.gunicorns(name) for name in NAMES[1:]} == {name: processes[name] for name in NAMES[1:]}
    assert {fleet.current(name) for name in NAMES} == {healthy}
    assert fleet.app_servers() == edge
    assert not (fleet.host("app1") / "lock").exists()


def test_a_host_that_cannot_be_reached_stops_a_deploy_before_anything_is_shipped(fleet):
    releases = {name: fleet.releases(name) for name in NAMES}
    with fleet.another_host("127.0.1.12"):
        said = fleet.fab("deploy", succeeds=False)
    assert "another (127.0.1.12)" in said
    assert {name: fleet.releases(name) for name in NAMES} == releases


def test_a_host_with_another_key_than_is_known_is_not_talked_to(fleet):
    known = fleet.root / "known_hosts"
    keys = known.read_text()
    known.write_text(keys.replace("[127.0.1.7]", "[127.0.1.77]"))
    try:
        said = fleet.fab("run", "--role", "app", "--", "touch touched", succeeds=False)
    finally:
        known.write_text(keys)
    assert re.search("app7: .*not found in known_hosts", said)
    assert [name for name in NAMES if not (fleet.host(name) / "touched").exists()] == ["app7"]


def test_a_migration_that_the_running_code_would_not_survive_is_refused(fleet):
    migration = fleet.repository / "accounts/migrations/9999_drop.py"
    newest = max(path.stem for path in (fleet.repository / "accounts/migrations").glob("0*.py"))
    migration.write_text(
        "from django.db import migrations\n\n\nclass Migration(migrations.Migration):\n"
        f"    dependencies = [('accounts', '{newest}')]\n"
        "    operations = [migrations.RemoveField('user', 'is_staff')]\n"
    )
    before = {name: fleet.current(name) for name in NAMES}
    fleet.commit("A column less")
    try:
        said = fleet.fab("deploy", succeeds=False)
    finally:
        migration.unlink()
        fleet.commit("And back")
    assert "accounts.9999_drop: Remove field is_staff from user" in said
    assert {name: fleet.current(name) for name in NAMES} == before


def test_a_lock_that_was_left_behind_is_named_and_broken_by_hand(fleet):
    lock = fleet.host("app1") / "lock"
    lock.write_text("alice@laptop deploys since 2011-10-06T09:00:00Z\n")
    assert "alice@laptop" in fleet.fab("rollback", succeeds=False)
    assert "alice@laptop" in fleet.fab("unlock")
    assert not lock.exists()


def test_status_shows_each_host_and_what_is_wrong_with_it(fleet):
    release = fleet.current("app3")
    fleet.stop_gunicorn("app3")
    lines = {line.split()[0]: line for line in fleet.fab("status").splitlines()}
    port = fleet.serving("app3")
    fleet.fab("run", "--role", "app", "--", f"test -e {port}.pid || ./restart {port}")
    assert re.fullmatch(rf"app2\s+app\s+{release}\s+\S+\s+\d+ s\s+ok", lines["app2"])
    assert re.match(rf"app3\s+app\s+{release}\s+\S+\s+gunicorn does not answer", lines["app3"])
    assert lines.keys() == {"host", *NAMES}


def test_maintenance_is_told_in_the_envelope_and_the_load_balancer_keeps_the_edge(fleet):
    fleet.fab("maintenance", "on")
    answer = requests.get(f"{fleet.url}/v1/media/popular", timeout=10)
    health = requests.get(f"{fleet.url}/edge-health", timeout=10)
    fleet.fab("maintenance", "off")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "60")
    assert answer.json()["meta"]["error_type"] == "APIError"
    assert health.status_code == 200
    assert requests.get(f"{fleet.url}/healthz", timeout=10).status_code == 200


def test_each_host_knows_who_deployed_what(fleet):
    for name in NAMES:
        lines = (fleet.host(name) / "releases.log").read_text().splitlines()
        assert [line.split()[1] for line in lines] == ["deploy", "done", "deploy", "done", "rollback"]
        assert all("@" in line.split()[3] for line in lines)


@pytest.mark.parametrize(
    ("actions", "live"),
    [
        ("deploy 1, done 1, deploy 2, done 2", "12"),
        ("deploy 1, done 1, deploy 2, done 2, rollback 1", "1"),
        ("deploy 1, done 1, deploy 2", "12"),  # stopped half-way: what it has reached runs it
        ("deploy 1, done 1, deploy 2, deploy 3, done 3", "13"),
        ("deploy 1, done 1, deploy 2, rollback 1, deploy 3, done 3", "13"),
    ],
)
def test_a_release_that_was_fled_from_or_stopped_is_no_place_to_go_back_to(fleet, actions, live):
    file = fleet.host("app3") / "releases.log"
    before = file.read_text()
    file.write_text("".join(f"2011-10-06T09:00:00Z {action} alice@laptop\n" for action in actions.split(", ")))
    try:
        assert live_releases(fleet.read_inventory().of("app")[2]) == list(live)
    finally:
        file.write_text(before)


def test_dependencies_are_installed_once_beside_those_that_are_in_use(fleet, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "WHEELS", tmp_path / "wheels")
    (tmp_path / "requirements.txt").write_text("six==1.17.0\n")
    built = Build("small", tmp_path / "none", tmp_path, requirements_of(tmp_path))
    host = fleet.read_inventory().of("app")[0]
    host.venvs = "venvs"  # its own
    host.run("mkdir -p venvs releases/small && echo six==1.17.0 > releases/small/requirements.txt")
    install([host], built)
    venv = fleet.host("app1") / "venvs" / built.requirements
    installed = (venv / "installed").stat().st_mtime_ns
    assert host.run(f"{venv}/bin/python -c 'import six; print(six.__version__)'") == "1.17.0\n"
    install([host], built)
    assert (venv / "installed").stat().st_mtime_ns == installed


def test_all_but_the_releases_that_are_kept_are_removed_with_their_dependencies(fleet):
    host = fleet.read_inventory().of("app")[1]
    host.venvs = "venvs"
    host.run("mkdir -p venvs/old venvs/new releases/old releases/new releases/.half")
    host.run("ln -s ../../venvs/old releases/old/.venv && ln -s ../../venvs/new releases/new/.venv")
    in_slots = {path.resolve().name for path in (fleet.host("app2") / "slots").iterdir()}
    assert in_slots
    prune(host, ["new"])
    assert host.run("ls -A releases venvs").split() == ["releases:", *sorted(in_slots), "new", "venvs:", "new"]
