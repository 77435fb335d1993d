"""The edge, and the servers behind it that may die: while a load runs, clients notice nothing (docs/edge.md)."""

import json
import os
import re
import secrets
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from django.conf import settings

from deploy.local import layout, programs
from deploy.local.machine import which
from deploy.local.ports import HOST
from tests.support import Person, ctl, eventually, get, jpeg

STACK = layout.Stack(os.environ["STACK"])
READERS, COMMENTERS = 3, 5
SECONDS_BETWEEN_COMMENTS = 0.8  # of one person, who may make 120 an hour
SECONDS_BETWEEN_PUBLISHES = 3


class Load:
    """People at the edge who read, comment and publish, each in a thread, for as long as the `with` lasts."""

    def __init__(self) -> None:
        self.owner, self.follower, *self.commenters = (Person() for _ in range(2 + COMMENTERS))
        self.follower.follow(self.owner)
        self.media_id = self.owner.take()["id"]
        self.uploads = iter([self.owner.upload(jpeg(size=(200, 200))) for _ in range(12)])
        self.reads: list[int] = []  # the statuses of their answers
        self.comments: dict[str, int] = {}  # by their texts, likewise
        self.publishes: dict[str, int] = {}  # by their uploads' IDs, likewise
        self.over = threading.Event()
        acts = [self._read] * READERS + [self._comment] * COMMENTERS + [self._publish]
        self.threads = [threading.Thread(target=act, args=[requests.Session()]) for act in acts]

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(60)

    def goes_on(self) -> None:
        """Waits until some more of each kind was answered."""
        for answers, more in ((self.reads, 40), (self.comments, 5)):
            enough = len(answers) + more
            eventually(lambda answers=answers, enough=enough: len(answers) >= enough, 30, "the load goes on")

    def _read(self, session: requests.Session) -> None:
        while not self.over.is_set():
            for path in ("users/self/feed", f"media/{self.media_id}"):
                self.reads.append(status(session, self.follower, "GET", path))

    def _comment(self, session: requests.Session) -> None:
        one = self.commenters.pop()
        for number in range(115):
            text = f"{one.username} says {number}"
            self.comments[text] = status(session, one, "POST", f"media/{self.media_id}/comments", text=text)
            if self.over.wait(SECONDS_BETWEEN_COMMENTS):
                break

    def _publish(self, session: requests.Session) -> None:
        for upload_id in self.uploads:
            self.publishes[upload_id] = status(session, self.owner, "POST", "media", upload_id=upload_id)
            if self.over.wait(SECONDS_BETWEEN_PUBLISHES):
                break

    def failed_posts(self) -> list[int]:
        return [code for code in [*self.comments.values(), *self.publishes.values()] if code != 200]

    def comments_made(self) -> list[str]:
        """The texts of all comments that there are."""
        made, params = [], {}
        while True:
            page = self.owner.call("GET", f"media/{self.media_id}/comments", params={"count": 100} | params).json()
            made += [comment["text"] for comment in page["data"]]
            if "next_cursor" not in page.get("pagination", {}):
                return made
            params = {"cursor": page["pagination"]["next_cursor"]}


def status(session: requests.Session, one: Person, method: str, path: str, **form: str) -> int:
    """That of the answer; 0 if the connection was lost."""
    headers = {"Authorization": f"Bearer {one.token}"}
    url = f"{settings.SITE_URL}/v1/{path}"
    try:
        return session.request(method, url, data=form or None, headers=headers, timeout=20).status_code
    except requests.ConnectionError:
        return 0


EDGE_LOGS = [STACK.logs / f"nginx_edge_{number}.access.log" for number in (1, 2, 3)]


def logs_ok(victim: str) -> Callable[[], bool]:
    """Whether the access log has a new request to this nginx, or through any nginx to this gunicorn, that went well."""
    logs = [log for log in EDGE_LOGS if log.name.startswith(victim)] or EDGE_LOGS
    text = '"status":200' if len(logs) == 1 else f'"upstream":"{STACK.address(victim)}","upstream_status":"200"'
    sizes = [log.stat().st_size for log in logs]
    return lambda: any(text in log.read_bytes()[size:].decode() for log, size in zip(logs, sizes, strict=True))


def is_asked(victim: str) -> Callable[[], bool]:
    """Whether this memcached, which has just started, is asked for tokens that nobody has, half of them at it."""

    def asked() -> bool:
        get("/v1/users/self", params={"access_token": secrets.token_hex(20)})
        return "cmd_get 0\r\n" not in said(victim, "stats\r\n", "END\r\n")

    return asked


def has_workers(victim: str) -> Callable[[], bool]:
    """Whether workers have come to this gearmand."""
    return lambda: any(line.split("\t")[3] != "0" for line in said(victim, "status\n", ".\n").splitlines()[:-1])


def said(name: str, question: str, end: str) -> str:
    with socket.create_connection((HOST, STACK.ports[name]), timeout=5) as connection:
        connection.sendall(question.encode())
        answer = b""
        while not answer.endswith(end.encode()):
            answer += connection.recv(65536)
    return answer.decode()


VICTIMS = {"nginx_edge_2": logs_ok, "gunicorn_2": logs_ok, "memcached_1": is_asked, "gearmand_1": has_workers}
# A POST that one of them had when it died is not repeated, since it may have had its effect: at most one a thread. It
# gets a 503, or the end of a connection that had been used before (0): then HTTP leaves it to the client to try again.
LOSE_POSTS = ("nginx_edge_2", "gunicorn_2")


@pytest.mark.slow
def test_who_is_killed_goes_unnoticed_and_works_again_once_it_is_back(stopped):
    with Load() as load:
        for victim, works in VICTIMS.items():
            failed_before = len(load.failed_posts())
            ctl("kill", victim)
            stopped(victim)  # so that it stays away for a while
            load.goes_on()
            ctl("start", victim)
            eventually(works(victim), 20, f"{victim} works again")
            failed = load.failed_posts()[failed_before:]
            assert len(failed) <= (COMMENTERS + 1 if victim in LOSE_POSTS else 0), victim
            assert set(load.reads) == {200}, victim
    assert set(load.failed_posts()) <= {0, 503}
    made = load.comments_made()
    assert len(made) == len(set(made))
    assert {text for text, code in load.comments.items() if code == 200} <= set(made) <= set(load.comments)
    # What failed, the phone sends again: there is one photo of each upload.
    photos = {load.owner.post("media", upload_id=upload_id)["id"] for upload_id in load.publishes} | {load.media_id}
    eventually(lambda: set(load.follower.feed(count=60)) == photos, 40, "all photos are in the feed")
    assert len(load.follower.feed(count=60)) == len(load.publishes) + 1


def test_without_app_servers_the_edge_says_so_and_is_back_with_the_first_of_them(stopped):
    """nginx has seen each of them fail more often than it takes to be left alone."""
    stopped("gunicorn")
    answers = [get("/v1/users/self/feed") for _ in range(20)]
    assert {(answer.status_code, answer.json()["meta"]["error_type"]) for answer in answers} == {(503, "APIError")}
    assert {answer.headers["Retry-After"] for answer in answers} == {"1"}
    ctl("start", "gunicorn_1")
    assert [get("/healthz").status_code for _ in range(6)] == [200] * 6


def test_without_any_nginx_the_load_balancer_answers_in_the_envelope(stopped):
    stopped("nginx_edge")
    response = get("/v1/users/self/feed")
    assert response.status_code == response.json()["meta"]["code"] == 503
    assert response.headers["Retry-After"] == "1"


# What passes the edge


def logged(request_id: str) -> dict:
    """The line of the access log of a request."""

    def line() -> str | None:
        return next((line for log in EDGE_LOGS for line in log.read_text().splitlines() if request_id in line), None)

    return json.loads(eventually(line, what="the request is in the access log"))


def test_a_request_has_an_id_of_ours_by_which_the_log_knows_it():
    answers = [get("/v1/users/self?access_token=secret", headers={"X-Request-ID": "mine"}) for _ in range(2)]
    first, second = (answer.headers["X-Request-ID"] for answer in answers)
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second
    line = logged(first)
    assert (line["method"], line["path"], line["status"]) == ("GET", "/v1/users/self", answers[0].status_code)
    assert "secret" not in json.dumps(line)
    assert line["upstream"] in STACK.addresses("gunicorn")


def test_a_clients_address_is_that_which_it_comes_from_and_not_what_it_says():
    claims = {"X-Forwarded-For": "10.1.2.3", "X-Forwarded-Proto": "https"}
    assert logged(get("/healthz", headers=claims).headers["X-Request-ID"])["address"] == HOST
    past_the_balancer = requests.get(f"http://{STACK.address('edge_1')}/healthz", headers=claims, timeout=10)
    assert logged(past_the_balancer.headers["X-Request-ID"])["address"] == HOST


def test_in_maintenance_the_edge_says_so_and_stays_in_rotation():
    switch = STACK.dir / "maintenance"
    switch.touch()
    try:
        response = get("/v1/users/self/feed")
        health = [requests.get(f"http://{address}/edge-health", timeout=10) for address in STACK.addresses("edge")]
    finally:
        switch.unlink()
    assert response.status_code == response.json()["meta"]["code"] == 503
    assert "working on" in response.json()["meta"]["error_message"]
    assert response.headers["Retry-After"] == "60"
    assert {answer.status_code for answer in health} == {200}
    assert get("/healthz").status_code == 200


# What an installation may set otherwise


@pytest.fixture
def edge(tmp_path) -> Iterator[Callable[..., int]]:
    """A function that starts one more nginx, with other values in its configuration; returns its port."""
    tmp_path.chmod(0o755)
    processes = []

    def start(**changed) -> int:
        with socket.create_server((HOST, 0)) as server:
            port = server.getsockname()[1]
        values = programs.edge_values(STACK, "app_servers.conf", STACK.addresses("gunicorn"))
        values |= {
            "listen": HOST,
            "port": port,
            "worker_processes": 1,
            "data": tmp_path,
            "access_log": tmp_path / "log",
        }
        file = tmp_path / "edge.conf"
        file.write_text(layout.render(layout.DEPLOY / "nginx/edge.conf", values | changed))
        command = [which("nginx"), "-e", "stderr", "-c", str(file)]
        subprocess.run([*command, "-t"], check=True, timeout=10)
        processes.append(subprocess.Popen([*command, "-g", "daemon off; master_process off;"]))
        eventually(programs.answers(port, "GET / HTTP/1.0\r\n\r\n", "HTTP/1."))
        return port

    yield start
    for process in processes:
        process.terminate()
        process.wait(timeout=10)


def test_tls_at_nginx(edge, tmp_path):
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
    certificate = STACK.conf / "apns.pem"  # signed by itself, for this address
    values = {"listen": HOST, "port": port, "certificate": certificate, "key": STACK.conf / "apns.key"}
    file = tmp_path / "tls.conf"
    file.write_text(layout.render(layout.DEPLOY / "nginx/tls.conf", values))
    edge(tls=f'include "{file}";')
    assert requests.get(f"https://{HOST}:{port}/healthz", verify=certificate, timeout=10).text == "ok\n"
    context = ssl.create_default_context(cafile=certificate)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((HOST, port), timeout=10) as connection,
        context.wrap_socket(connection, server_hostname=HOST) as secured,
    ):
        assert (secured.version(), secured.selected_alpn_protocol()) == ("TLSv1.3", "h2")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection((HOST, port), timeout=10) as connection, pytest.raises(ssl.SSLError):
        context.wrap_socket(connection, server_hostname=HOST)


def test_a_flood_from_one_address_is_refused_in_the_envelope(edge):
    site = f"http://{HOST}:{edge(requests_a_second=1, requests_of_a_burst=3)}"
    with ThreadPoolExecutor(8) as pool:  # each second that passes lets one more through
        answers = list(pool.map(lambda _: requests.get(f"{site}/healthz", timeout=10), range(8)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert 3 <= len(refused) <= 5
    assert {answer.json()["meta"]["error_type"] for answer in refused} == {"OAuthRateLimitException"}
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
