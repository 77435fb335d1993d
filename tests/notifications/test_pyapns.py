"""The service as any XML-RPC client sees it, and what the double of APNs got of it."""

import base64
import json
import os
import re
import secrets
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit
from xmlrpc.client import Fault, ServerProxy

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.test import override_settings
from jwcrypto import jwk, jwt

from deploy.local.cli import supervisor_of
from notifications.pyapns import apns, authorization, client
from notifications.pyapns.authorization import Authorization, Credentials
from tests.support import apns_log, apns_requests, eventually

HELLO = {"aps": {"alert": {"body": "Hello!"}}}
KEY = {"key": Path(settings.APNS_KEY_FILE).read_text(), "key_id": "ABCDEFGHIJ", "team_id": "TEAM000001"}
CERTIFICATE = Path(settings.APNS_CA_FILE).read_text()
CERTIFICATE_KEY = Path(settings.APNS_CA_FILE).with_suffix(".key").read_text()


@pytest.fixture
def service():
    with ServerProxy(settings.PYAPNS_URL, allow_none=True) as service:
        yield service


@pytest.fixture
def app(service):
    """An app of the test's own, which gives up after 2 s."""
    app_id = f"app{secrets.token_hex(4)}"
    service.provision(app_id, KEY | {"topic": "com.example.test"}, "sandbox", 2)
    return app_id


class Tunnel:
    """A way to a server on a port of its own, of which the connections can fall silent without ending."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server, self._open = server, []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> "Tunnel":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._listener.close()

    def freeze(self) -> None:
        for is_open in self._open:
            is_open.clear()

    def _accept(self) -> None:
        with suppress(OSError):  # the end
            while True:
                ours, _ = self._listener.accept()
                theirs, is_open = socket.create_connection(self._server), threading.Event()
                is_open.set()
                self._open.append(is_open)
                for pair in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._pass, args=(*pair, is_open), daemon=True).start()

    def _pass(self, from_: socket.socket, to: socket.socket, is_open: threading.Event) -> None:
        while data := from_.recv(65536):
            if is_open.is_set():
                to.sendall(data)


def kill_service() -> None:
    """As `ctl` does it, but at once: until that has started, a fast machine has delivered thousands."""
    supervisor_of(os.environ["STACK"]).rpc.signalProcessGroup("pyapns", "KILL")


def token(beginning: str = "") -> str:
    return beginning + secrets.token_hex(32)[len(beginning) :]


def test_a_notification_is_delivered_with_the_headers_that_apple_asks_for(service, app):
    phone = token()
    headers = {"id": "f3c0a1d2-0000-4000-8000-000000000001", "collapse-id": "likes1", "priority": 5, "expiration": 99}
    payload = {"aps": {"alert": {"body": "Grüße 🙂"}, "badge": 3}, "link": "instagram://media?id=1_2"}
    assert service.notify(app, phone, payload | {"apns": headers}) == []
    (got,) = apns_requests(phone)
    assert json.loads(got["payload"]) == payload
    assert got["status"] == 200
    assert got["topic"] == "com.example.test"
    assert got["push_type"] == "alert"
    assert (got["id"], got["collapse_id"], got["priority"], got["expiration"]) == (headers["id"], "likes1", "5", "99")


def test_each_of_many_tokens_gets_its_notification(service, app):
    phones = [token() for _ in range(3)]
    contents = [{"aps": {"alert": text}} for text in ("one", "two", "three")]
    assert service.notify(app, phones, contents) == []
    assert service.notify(app, phones[:2], HELLO) == []
    alerts = [[json.loads(got["payload"])["aps"]["alert"] for got in apns_requests(phone)] for phone in phones]
    assert alerts == [["one", HELLO["aps"]["alert"]], ["two", HELLO["aps"]["alert"]], ["three"]]


def test_their_json_text_is_as_good(service, app):
    phones = [token() for _ in range(2)]
    assert service.notify(app, phones, json.dumps([{"aps": {"alert": "one"}}, {"aps": {"alert": "two"}}])) == []
    assert service.notify(app, phones[0], json.dumps(HELLO)) == []
    alerts = [[json.loads(got["payload"])["aps"]["alert"] for got in apns_requests(phone)] for phone in phones]
    assert alerts == [["one", HELLO["aps"]["alert"]], ["two"]]


def test_the_provider_token_is_signed_with_the_key_and_used_again(service, app):
    phones = [token(), token()]
    for phone in phones:
        service.notify(app, phone, HELLO)
    (one,), (other,) = (apns_requests(phone) for phone in phones)
    assert one["authorization"] == other["authorization"]
    public = jwk.JWK.from_pem(KEY["key"].encode())
    signed = jwt.JWT(jwt=one["authorization"].removeprefix("bearer "), key=public, algs=["ES256"])
    assert json.loads(signed.header) == {"alg": "ES256", "kid": "ABCDEFGHIJ"}
    claims = json.loads(signed.claims)
    assert claims["iss"] == "TEAM000001"
    assert 0 <= time.time() - claims["iat"] < 60


@pytest.fixture
def clock(monkeypatch):
    """What `authorization` takes for the time, in a list."""
    clock = [1000.0]
    monkeypatch.setattr(authorization, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))
    return clock


def test_the_provider_token_is_renewed_after_forty_minutes(clock):
    shown = Authorization(Credentials(**KEY, topic="com.example.test"))
    first = shown.headers()
    clock[0] += 40 * 60 - 1
    assert shown.headers() == first
    clock[0] += 2
    second = shown.headers()
    assert second != first
    clock[0] += 40 * 60 - 1
    assert shown.headers() == second


def test_a_provider_token_of_which_apple_says_that_it_has_expired_is_renewed_but_not_within_ten_seconds(clock):
    shown = Authorization(Credentials(**KEY, topic="com.example.test"))
    first = shown.headers()
    clock[0] += 9
    shown.has_expired()
    assert shown.headers() == first
    clock[0] += 2
    second = shown.headers()
    assert second != first
    for _ in range(100):  # all that were on their way
        shown.has_expired()
        assert shown.headers() == second
    clock[0] += 60
    third = shown.headers()
    assert third != second
    clock[0] += 60
    assert shown.headers() == third


@pytest.mark.parametrize("is_path", [False, True])
def test_an_app_may_show_a_certificate_instead(service, tmp_path, is_path):
    file, app_id, phone = tmp_path / "app.pem", f"app{secrets.token_hex(4)}", token()
    file.write_text(CERTIFICATE + CERTIFICATE_KEY)
    certificate = str(file) if is_path else file.read_text()
    service.provision(app_id, {"certificate": certificate, "topic": "com.example.old"}, "production")
    service.notify(app_id, phone, HELLO)
    (got,) = apns_requests(phone)
    assert got["certificate"] == "CN=apns"
    assert got["authorization"] == ""


@pytest.mark.parametrize(
    ("beginning", "reason", "is_dead"),
    [
        ("dead0410", "Unregistered", True),
        ("dead0400", "BadDeviceToken", False),
        ("dead0413", "PayloadTooLarge", False),
    ],
)
def test_what_apns_refuses_for_good_is_returned_and_never_tried_again(service, app, beginning, reason, is_dead):
    dead, alive = token(beginning), token()
    assert service.notify(app, [dead, alive], HELLO) == [[dead, reason]]
    assert len(apns_requests(dead)) == len(apns_requests(alive)) == 1
    found = service.feedback(app)
    assert [one for _, one in found] == ([dead] if is_dead else [])
    if is_dead:
        since = found[0][0]
        assert abs(time.time() - time.mktime((*since.timetuple()[:8], 0)) + time.timezone) < 60
    assert service.feedback(app) == []


@pytest.mark.parametrize("beginning", ["dead0429", "dead0500", "dead0503"])
def test_a_passing_error_is_tried_again_with_the_same_id_until_time_is_over(service, app, beginning):
    phone = token(beginning)
    with pytest.raises(Fault, match="1 of 1 were not delivered") as fault:
        service.notify(app, phone, HELLO)
    assert fault.value.faultCode == 503
    got = apns_requests(phone)
    assert len(got) > 2
    assert len({one["id"] for one in got}) == 1
    assert got[0]["id"]


def test_an_apple_that_does_not_know_us_is_a_fault_at_once(service, app):
    phone = token("dead0403")
    with pytest.raises(Fault, match="InvalidProviderToken"):
        service.notify(app, phone, HELLO)
    assert len(apns_requests(phone)) == 1


def test_an_apple_that_does_not_answer_is_waited_for_no_longer_than_provisioned(service, app):
    began, silent = time.monotonic(), token("dead0408")
    assert service.notify(app, [silent, token()], HELLO) == [[silent, "Undelivered"]]
    with pytest.raises(Fault, match="1 of 1 were not delivered"):
        service.notify(app, silent, HELLO)
    assert time.monotonic() - began < 12


def test_a_connection_on_which_nothing_comes_any_more_is_left_for_a_new_one(monkeypatch):
    monkeypatch.setattr(apns, "ANSWER_SECONDS", 3)
    monkeypatch.setattr(apns, "SILENT_SECONDS", 0.5)
    apple = urlsplit(settings.APNS_URLS["sandbox"])
    credentials = Credentials(**KEY, topic="com.example.test")
    with Tunnel((apple.hostname, apple.port)) as tunnel:
        url = f"https://{apple.hostname}:{tunnel.port}"
        sender = apns.Sender(url, credentials, Authorization(credentials), settings.APNS_CA_FILE, lambda *_: None)
        sender.start()

        def deliver(phone: str) -> apns.Batch:
            batch = apns.Batch(until=time.monotonic() + 15, left=1)
            sender.put([apns.Content.of(HELLO).to(phone, batch)])
            assert batch.done.wait(20)
            return batch

        first, second = token(), token()
        assert deliver(first).undelivered == []
        tunnel.freeze()
        assert deliver(second).undelivered == []
        sender.stop()
    (one,), (other,) = apns_requests(first), apns_requests(second)
    assert one["connection"] != other["connection"]


def test_all_get_through_to_an_apple_that_fails_half_of_the_time(service):
    app_id = f"app{secrets.token_hex(4)}"
    service.provision(app_id, KEY, "sandbox", 60)  # 15 tries: in 30 s there are 10, and one phone in 1000 gets none
    phones = [token("dead0050") for _ in range(20)]
    assert service.notify(app_id, phones, HELLO) == []
    tries = [apns_requests(phone) for phone in phones]
    assert all([one["status"] for one in got].count(200) == 1 for got in tries)
    assert sum(map(len, tries)) > len(phones)


def test_a_long_alert_is_shortened_to_what_apns_takes(service, app):
    phones = [token(), token()]
    service.notify(app, phones[0], {"aps": {"alert": {"title": "ann", "body": "ä🙂" * 2000}, "badge": 1}})
    service.notify(app, phones[1], {"aps": {"alert": "ö" * 5000}})
    payloads = [apns_requests(phone)[0]["payload"] for phone in phones]
    assert all(4085 < len(payload.encode()) <= 4096 for payload in payloads)
    assert json.loads(payloads[0])["aps"]["alert"]["body"].endswith("…")
    assert json.loads(payloads[0])["aps"]["alert"]["title"] == "ann"
    assert set(json.loads(payloads[1])["aps"]["alert"]) == {"ö", "…"}


@pytest.mark.parametrize(
    ("tokens", "notifications", "message"),
    [
        (None, {"alert": "no aps"}, "a payload as APNs has it"),
        (None, "not JSON", "notification: "),
        (None, [HELLO, HELLO], "2 for 1 tokens"),
        (None, json.dumps([HELLO, HELLO]), "2 for 1 tokens"),
        (None, "[1]", "a payload as APNs has it"),
        ("../../4/secret", HELLO, "is no device token"),
        (None, HELLO | {"apns": {"authorization": "mine"}}, "no headers of APNs"),
        (None, HELLO | {"apns": {"id": "1\r\napns-topic: other"}}, "cannot be in a header"),
        (None, {"aps": {}, "more": "x" * 5000}, "5020 bytes; 4096 are the most"),
        (["ab" * 32] * 20_001, json.dumps(HELLO), "the queue is full"),
    ],
)
def test_what_cannot_be_sent_is_refused_and_nothing_is_sent(service, app, tokens, notifications, message):
    phone = token()
    with pytest.raises(Fault, match=message):
        service.notify(app, tokens or phone, notifications)
    assert apns_requests(phone) == []


@pytest.mark.parametrize(
    ("credentials", "environment", "timeout", "message"),
    [
        (KEY, "moon", 15, "neither 'production' nor 'sandbox'"),
        (KEY, "sandbox", 0, "between 1 and 60"),
        (KEY | {"key": "no key"}, "sandbox", 15, "credentials: key"),
        (KEY | {"secret": "x"}, "sandbox", 15, "are not those of a key or of a certificate"),
        ({"topic": "com.example"}, "sandbox", 15, r"give \{topic, key, key_id, team_id\}"),
        (KEY | {"topic": 7}, "sandbox", 15, "topic is no text in ASCII"),
        (KEY | {"topic": "com.exämple"}, "sandbox", 15, "topic is no text in ASCII"),
        (KEY | {"topic": "com.example\napns-priority: 1"}, "sandbox", 15, "topic is no text in ASCII"),
        (KEY | {"key_id": None}, "sandbox", 15, "key_id is no text in ASCII"),
        (["key"], "sandbox", 15, "must be a struct, or a certificate"),
        (7, "sandbox", 15, "must be a struct, or a certificate"),
        ("/nowhere/app.pem", "sandbox", 15, "certificate is neither PEM nor the path"),
        ("/dev/zero", "sandbox", 15, "certificate is neither PEM nor the path"),
        ({"certificate": "x" * 5000}, "sandbox", 15, "certificate is neither PEM nor the path"),
        (CERTIFICATE[:200] + CERTIFICATE_KEY, "sandbox", 15, "certificate: "),
        (CERTIFICATE, "sandbox", 15, "certificate: "),
        (CERTIFICATE + KEY["key"], "sandbox", 15, "certificate: the key is that of another"),
    ],
)
def test_what_cannot_be_provisioned(service, credentials, environment, timeout, message):
    with pytest.raises(Fault, match=message) as fault:
        service.provision("bad", credentials, environment, timeout)
    assert fault.value.faultCode == 400
    with pytest.raises(Fault, match="'bad' is not provisioned"):
        service.notify("bad", token(), HELLO)


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid", ""])
def test_the_service_listens_on_loopback_alone(host):
    with override_settings(PYAPNS_URL=f"http://{host}:1/"), pytest.raises(CommandError, match=f"PYAPNS_URL: '{host}'"):
        call_command("pyapns")


def test_the_ten_lines_of_the_docs(capsys):
    page = (settings.BASE_DIR / "docs/push.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 10
    names = {"URL": settings.PYAPNS_URL, "KEY": settings.APNS_KEY_FILE, "TOKEN": token("dead0410")}
    for name, value in names.items():
        code = code.replace(name, repr(value))
    exec(code, {})  # noqa: S102
    assert capsys.readouterr().out.count(names["TOKEN"]) == 2


def test_a_connection_that_apple_ends_in_good_order_loses_none_and_repeats_none(service):
    """The double says GOAWAY after 5000 requests of a connection. One call is one sender's."""
    app_id, phones = f"app{secrets.token_hex(4)}", [token("aa") for _ in range(5500)]
    service.provision(app_id, KEY, "sandbox", 30)
    assert service.notify(app_id, phones, json.dumps(HELLO)) == []
    wanted = {f"/3/device/{phone}" for phone in phones}
    got = [one for one in apns_requests() if one["path"] in wanted]
    assert sorted(one["path"] for one in got) == sorted(wanted)
    assert len({one["connection"] for one in got}) >= 2


def test_a_connection_cut_in_the_middle_of_ten_thousand_loses_none(service):
    app_id = f"app{secrets.token_hex(4)}"
    service.provision(app_id, KEY, "sandbox", 30)
    phones = [token("aa") for _ in range(10_000)]
    batches = [phones[at : at + 250] for at in range(0, len(phones), 250)]
    before = apns_log().stat().st_size
    with ThreadPoolExecutor(4) as callers:
        done = [callers.submit(client.notify, app_id, batch, [HELLO] * len(batch)) for batch in batches]
        eventually(lambda: apns_log().stat().st_size - before > 100_000, 20, "some are delivered")
        # Not -9: what has been answered shall be in the log.
        os.kill(int(apns_log().parents[1].joinpath("data/nginx_apns/nginx.pid").read_text()), signal.SIGTERM)
        assert not all(one.done() for one in done), "most are still to come"
        assert [one.result() for one in done] == [[]] * len(batches)
    wanted = {f"/3/device/{phone}" for phone in phones}
    got = [one for one in apns_requests() if one["path"] in wanted]
    assert {one["path"] for one in got} == wanted
    assert len(got) - len(wanted) <= 500, "no more are repeated than were on their way"
    assert len({(one["path"], one["id"]) for one in got}) == len(wanted)
    assert len({one["process"] for one in got}) == 2, "some came before the cut, some after it by a new connection"


def test_a_killed_service_loses_nothing_of_what_its_callers_repeat():
    phones = [token("aa") for _ in range(15_000)]
    ids = [base64.b16encode(phone[:16].encode()).decode() for phone in phones]
    contents = [HELLO | {"apns": {"id": one}} for one in ids]
    before = apns_log().stat().st_size
    is_killed = threading.Event()

    def deliver(at: int) -> int:
        """How often the caller was told to try again."""
        for tries in range(400):
            try:
                client.notify("sandbox", phones[at : at + 500], contents[at : at + 500])
                return tries
            except client.Unavailable:
                assert is_killed.wait(10)
                threading.Event().wait(0.1)
        raise AssertionError("the service is not back")

    with ThreadPoolExecutor(4) as callers:
        done = [callers.submit(deliver, at) for at in range(0, len(phones), 500)]
        eventually(lambda: apns_log().stat().st_size - before > 100_000, 20, "some are delivered")
        kill_service()
        is_killed.set()
        assert max(one.result() for one in done) > 0
    wanted = {f"/3/device/{phone}" for phone in phones}
    got = [one for one in apns_requests() if one["path"] in wanted]
    assert {one["path"] for one in got} == wanted
    assert {one["id"] for one in got} == set(ids)
