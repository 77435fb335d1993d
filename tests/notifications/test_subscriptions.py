"""Subscribing: the endpoints, the callback's challenge, and which addresses a callback may have."""

import datetime
import secrets
import ssl
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.conf import settings

from notifications import callbacks
from notifications.models import Callback
from notifications.subscriptions import MOST_SUBSCRIPTIONS
from tests.accounts.test_oauth import Client, shown
from tests.notifications.developer import reply
from tests.support import Refused

PLACE = {"lat": "52.5", "lng": "13.4", "radius": "500"}


def refused(call, *args, **kwargs) -> dict:
    with pytest.raises(Refused) as error:
        call(*args, **kwargs)
    return error.value.meta


def new_tag() -> str:
    return f"t{secrets.token_hex(6)}"


def test_the_callback_is_challenged_before_a_subscription_is_there(developer):
    made = developer.subscribe("user", verify_token="a b&c=é")
    assert made == {
        "id": made["id"],
        "type": "subscription",
        "object": "user",
        "object_id": None,
        "aspect": "media",
        "callback_url": developer.url(),
    }
    (asked,) = developer.challenges
    assert len(asked.pop("hub.challenge")) == 32
    assert asked == {"hub.mode": "subscribe", "hub.verify_token": "a b&c=é"}
    assert developer.subscriptions() == [made]


def test_a_callback_may_have_a_query_and_need_no_verify_token(developer):
    developer.subscribe("user", callback_url=developer.url("/?app=1"), verify_token="")
    (asked,) = developer.challenges
    assert asked.keys() == {"app", "hub.mode", "hub.challenge"}
    assert asked["app"] == "1"


def test_each_object_has_its_id(developer, person):
    name = new_tag()
    assert developer.subscribe("tag", object_id=f"#{name.upper()}")["object_id"] == name
    location = person().publish(location_name="Here", latitude="1.5", longitude="2.5")["location"]
    assert developer.subscribe("location", object_id=location["id"])["object_id"] == location["id"]
    geography = developer.subscribe("geography", **PLACE)
    assert geography["object_id"].isdigit()
    assert [one["object"] for one in developer.subscriptions()] == ["tag", "location", "geography"]


def test_the_same_subscription_again_is_the_same(developer):
    wishes = [("user", {}), ("tag", {"object_id": "sunset"}), ("geography", PLACE)]
    first = [developer.subscribe(object, **params) for object, params in wishes]
    assert [developer.subscribe(object, **params) for object, params in wishes] == first
    assert len(developer.challenges) == 2 * len(wishes)
    elsewhere = developer.subscribe("geography", **PLACE | {"radius": "501"})
    other_callback = developer.subscribe("user", callback_url=developer.url("/other"))
    assert developer.subscriptions() == [*first, elsewhere, other_callback]


def test_many_at_once_make_one(developer):
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: developer.subscribe("tag", object_id="sunset"), range(3)))
    assert made == [made[0]] * 3
    assert developer.subscriptions() == [made[0]]


def test_deleting_by_id_by_object_and_all(developer):
    user, sunset = developer.subscribe("user"), developer.subscribe("tag", object_id="sunset")
    sunrise, place = developer.subscribe("tag", object_id="sunrise"), developer.subscribe("geography", **PLACE)
    developer.unsubscribe(id=sunset["id"])
    assert developer.subscriptions() == [user, sunrise, place]
    developer.unsubscribe(object="tag")
    assert developer.subscriptions() == [user, place]
    assert "id" in refused(developer.unsubscribe)["error_message"]
    developer.unsubscribe(object="all")
    assert developer.subscriptions() == []
    developer.unsubscribe(id=sunset["id"])  # is gone by now
    assert not Callback.objects.filter(url=developer.url()).exists()


def test_nobody_sees_or_deletes_those_of_another_client(developer, owner):
    made = developer.subscribe("user")
    mine = developer.client, developer.secret
    other = Client(owner)
    developer.client, developer.secret = other, other.secret
    assert developer.subscriptions() == []
    developer.unsubscribe(id=made["id"])
    developer.unsubscribe(object="all")
    developer.client, developer.secret = mine
    assert developer.subscriptions() == [made]


def test_a_client_proves_itself_by_its_secret(developer, owner):
    public = Client(owner, public=True)
    for client_id, secret in (
        (developer.client.id, ""),
        (developer.client.id, "wrong"),
        (developer.client.id, "é"),
        ("", ""),
        ("nobody", developer.secret),
        (public.id, ""),
        ("phone", ""),
    ):
        for method in ("GET", "POST", "DELETE"):
            wish = {"object": "user", "aspect": "media", "callback_url": developer.url()}
            answer = developer.call(method, client_id=client_id, client_secret=secret, **wish)
            assert (answer.status_code, answer.json()["meta"]["error_type"]) == (400, "OAuthParameterException")
    assert developer.challenges == []


def test_a_rotated_secret_is_needed_at_once(developer, owner):
    page = owner.submit(owner.open(f"{developer.client.path}secret/"), "Make a new secret")
    assert refused(developer.subscriptions)["error_type"] == "OAuthParameterException"
    developer.secret = shown(page, "client_secret")
    assert developer.subscriptions() == []


def test_a_client_has_so_many_and_no_more(developer):
    for number in range(MOST_SUBSCRIPTIONS):
        developer.subscribe("tag", object_id=f"tag{number}")
    assert refused(developer.subscribe, "tag", object_id="another")["error_type"] == "APINotAllowedError"
    assert developer.subscribe("tag", object_id="tag0")["object_id"] == "tag0"
    developer.unsubscribe(object="tag")
    assert developer.subscribe("tag", object_id="another")["object_id"] == "another"


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"object": "photo"}, "object"),
        ({"aspect": "likes"}, "aspect"),
        ({"aspect": ""}, "aspect"),
        ({"callback_url": ""}, "callback_url"),
        ({"object": "tag"}, "object_id"),
        ({"object": "tag", "object_id": "two words"}, "object_id"),
        ({"object": "tag", "object_id": "x" * 101}, "object_id"),
        ({"object": "location", "object_id": "here"}, "object_id"),
        ({"object": "location", "object_id": "9" * 19}, "location"),
        ({"object": "geography"}, "lat"),
        ({"object": "geography", "lat": "1", "lng": "2"}, "radius"),
        ({"object": "geography", **PLACE, "radius": "5001"}, "radius"),
        ({"object": "geography", **PLACE, "radius": "0"}, "radius"),
        ({"object": "geography", **PLACE, "lat": "91"}, "lat"),
        ({"object": "geography", **PLACE, "lng": "nan"}, "lng"),
        ({"object": "user", **PLACE}, "lat"),
        ({"verify_token": "x" * 201}, "verify_token"),
    ],
)
def test_bad_parameters_are_named(developer, params, named):
    assert named in refused(developer.subscribe, **{"object": "user", **params})["error_message"]
    assert developer.subscriptions() == []
    assert developer.challenges == []


# The challenge.


def no_challenge(developer, seconds: float = 4) -> str:
    """What is said of a callback that did not pass."""
    began = time.monotonic()
    meta = refused(developer.subscribe, "user")
    assert time.monotonic() - began < seconds
    assert meta["error_type"] == "APIInvalidParametersError"
    assert meta["error_message"].startswith(f"callback_url: {developer.url()} ")
    assert developer.subscriptions() == []
    return meta["error_message"]


@pytest.mark.parametrize("body", [b"", b"no", b"%s\n", b'"%s"', b"%s%s"])
def test_the_answer_must_be_the_challenge_and_nothing_else(developer, body):
    developer.answer = lambda handler, asked: reply(handler, body.replace(b"%s", asked["hub.challenge"].encode()))
    assert "hub.challenge" in no_challenge(developer)


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_callback_that_refuses(developer, status):
    developer.answer = lambda handler, asked: reply(handler, asked["hub.challenge"].encode(), status)
    assert f"status {status}" in no_challenge(developer)


def test_redirects_are_not_followed(developer):
    def away(handler, asked):
        reply(handler, b"", 302, Location=developer.url(f"/elsewhere?hub.challenge={asked['hub.challenge']}"))

    developer.answer = away
    assert "status 302" in no_challenge(developer)
    assert len(developer.challenges) == 1


def test_an_answer_that_is_too_large_is_not_read(developer):
    developer.answer = lambda handler, asked: reply(handler, b"x" * 10_000_000)
    assert "65536 bytes" in no_challenge(developer)


def test_a_callback_that_does_not_answer_in_time(developer):
    developer.open.clear()
    developer.answer = lambda handler, asked: developer.open.wait(10)
    try:
        assert "timed out" in no_challenge(developer, 9)
    finally:
        developer.open.set()


def drip_headers(handler, asked) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")


def drip_body(handler, asked) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "10000")
    handler.end_headers()


@pytest.mark.parametrize("begin", [drip_headers, drip_body])
def test_a_callback_that_answers_a_byte_at_a_time(developer, begin):
    def drip(handler, asked):
        begin(handler, asked)
        while not over.is_set():
            over.wait(0.3)
            handler.wfile.write(b"x")
            handler.wfile.flush()

    over = developer.open
    over.clear()
    developer.answer = drip
    try:
        assert "timed out" in no_challenge(developer, 9)
    finally:
        over.set()


def test_a_callback_that_is_not_there(developer):
    developer.stop()
    try:
        assert "cannot be reached" in no_challenge(developer)
    finally:
        developer.start()


def test_callbacks_that_are_slow_leave_the_site_its_threads(developer):
    developer.open.clear()
    developer.answer = lambda handler, asked: developer.open.wait(10)
    try:
        with ThreadPoolExecutor(24) as pool:
            wish = {"object": "user", "aspect": "media", "callback_url": developer.url()}
            answers = list(pool.map(lambda _: developer.call("POST", **wish), range(24)))
    finally:
        developer.open.set()
    found = [answer.json()["meta"]["error_type"] for answer in answers]
    assert set(found) == {"APIInvalidParametersError", "OAuthRateLimitException"}
    assert len(developer.challenges) == found.count("APIInvalidParametersError") <= 2 * 4


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> str:
    """A file with a certificate of "localhost", signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    pem = serialization.Encoding.PEM
    file.write_bytes(signed.public_bytes(pem) + key.private_bytes(pem, *form))
    return str(file)


def test_certificates_are_checked_by_name(developer, certificate, monkeypatch):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    asked_for = []
    tls.sni_callback = lambda connection, name, context: asked_for.append(name)
    developer.server.socket = tls.wrap_socket(developer.server.socket, server_side=True)
    by_name, by_address = (f"https://{host}:{developer.port}/" for host in ("localhost", "127.0.0.1"))
    for url in (by_name, by_address):
        with pytest.raises(callbacks.Failed, match="cannot be reached: SSL"):
            callbacks.challenge(url, None)
    monkeypatch.setattr("certifi.where", lambda: certificate)
    callbacks.challenge(by_name, None)
    assert len(developer.challenges) == 1
    assert asked_for[-1] == "localhost"
    with pytest.raises(callbacks.Failed, match="cannot be reached: SSL"):
        callbacks.challenge(by_address, None)
    assert len(developer.challenges) == 1


# Where a callback may be.


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "//example.com/",
        "example.com/callback",
        "javascript:alert(1)",
        "http://",
        "http:///path",
        "http://user:password@example.com/",
        "http://user@example.com/",
        "http://example.com@10.0.0.1/",
        "http://example.com\\@10.0.0.1/",
        "http://example.com/#fragment",
        "http://example.com/a b",
        "http://example.com/\r\nX-Evil: 1",
        "http://example.com/é",
        "http://bücher.example/",
        "http://example.com:22/",
        "http://example.com:25/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://[::1%25eth0]/",
        f"http://example.com/{'x' * 500}",
    ],
)
def test_what_cannot_be_a_callback(developer, url):
    meta = refused(developer.subscribe, "user", callback_url=url)
    assert meta["error_type"] == "APIInvalidParametersError"
    assert meta["error_message"].startswith("callback_url: ")
    assert "must be" in meta["error_message"]


INSIDE = [
    "http://169.254.169.254/latest/meta-data/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://0.0.0.0:8000/",
    "http://127.0.0.2:8000/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://2852039166/",  # 169.254.169.254
    "http://0xa9fea9fe/",
    "http://0251.0376.0251.0376/",
    "http://10.1/",
    "http://[::1]:8000/",
    "http://[::]:8000/",
    "http://[::ffff:10.0.0.1]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[::10.0.0.1]/",
    "http://[64:ff9b::a00:1]/",
    "http://[64:ff9b::808:808]/",
    "http://[2002:a00:1::]/",
    "http://[fe80::1]/",
    "http://[fc00::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
]


@pytest.mark.parametrize("url", INSIDE)
def test_no_callback_is_inside_our_network(developer, url):
    meta = refused(developer.subscribe, "user", callback_url=url)
    assert meta["error_type"] == "APIInvalidParametersError"
    assert meta["error_message"] == f"callback_url: {url} is at an address that is not public"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "localhost.", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[::1]"]
)
def test_in_production_this_machine_is_inside_too(developer, monkeypatch, host):
    url = f"http://{host}:{developer.port}/"
    monkeypatch.setattr(settings, "CALLBACK_NETWORKS", [])
    for call in (lambda: callbacks.challenge(url, None), lambda: callbacks.post(url, b"[]", "0")):
        with pytest.raises(callbacks.Failed, match="not public"):
            call()
    assert developer.challenges == developer.arrived == []


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"])
def test_the_internet_is_public(address):
    assert callbacks.is_public(address)


def test_no_proxy_of_the_environment_connects_for_us(developer, monkeypatch):
    monkeypatch.setenv("http_proxy", developer.url(""))
    monkeypatch.setattr(callbacks, "CONNECT_MS", 50)
    with pytest.raises(callbacks.Failed):
        callbacks.challenge("http://192.168.1.1/", None)
    assert developer.challenges == []
