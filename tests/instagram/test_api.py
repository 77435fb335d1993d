import json
import time

import pytest
import requests
from django.conf import settings

from shardmap.redis_client import redis_client
from tests.support import ctl, eventually, get, new_username

SITE = settings.SITE_URL


@pytest.fixture(scope="module")
def one():
    from tests.support import Person

    return Person()


@pytest.mark.parametrize("form", ["users/self", "users/self/", "users/self.json", "users/self.json/"])
def test_a_path_answers_in_every_form(one, form):
    assert one.get(form)["id"] == str(one.id)


@pytest.mark.parametrize("how", ["query", "bearer", "lower-case bearer"])
def test_a_token_is_taken_from_the_query_or_a_header(one, how):
    headers = {"bearer": f"Bearer {one.token}", "lower-case bearer": f"bearer {one.token}"}
    if how == "query":
        response = get("/v1/users/self", params={"access_token": one.token})
    else:
        response = get("/v1/users/self", headers={"Authorization": headers[how]})
    assert response.json()["data"]["id"] == str(one.id)


def test_a_token_in_the_body_is_taken(one):
    body = {"access_token": one.token, "content_type": "image/png"}
    for options in ({"data": body}, {"json": body}, {"files": {k: (None, v) for k, v in body.items()}}):
        response = requests.post(f"{SITE}/v1/media/uploads", timeout=10, **options)
        assert response.json()["data"]["fields"]["Content-Type"] == "image/png"


def test_the_envelope(one):
    response = one.call("GET", "users/self")
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.json()["meta"] == {"code": 200}


def test_jsonp(one):
    response = one.call("GET", "users/self", params={"callback": "app.show_$1"})
    assert response.headers["Content-Type"].startswith("application/javascript")
    assert response.text.startswith("/**/app.show_$1({")
    assert response.text.endswith(");")
    assert json.loads(response.text[len("/**/app.show_$1(") : -2])["data"]["id"] == str(one.id)


@pytest.mark.parametrize("callback", ["alert(1)", "a b", "<script>", "1a", "x" * 65, "a;b"])
def test_a_callback_that_is_no_name_is_not_called(one, callback):
    response = one.call("GET", "users/self", params={"callback": callback})
    assert response.headers["Content-Type"].startswith("application/json")
    assert response.text.startswith("{")


def test_what_browsers_ask_by_themselves():
    assert get("/favicon.ico").status_code == 204
    assert "Disallow: /v1/" in get("/robots.txt").text
    home = get("/", allow_redirects=False)
    assert (home.status_code, home.headers["Location"]) == (302, "/developer/")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("charset", ["hex", "nonsense", "latin-1", "utf-16"])
@pytest.mark.parametrize("path", ["/v1/media", "/oauth/access_token", "/v1/nothing", "/v1/users/self"])
def test_a_strange_charset_is_an_envelope(one, kind, charset, path):
    headers = {"Authorization": f"Bearer {one.token}", "Content-Type": f"{kind}; charset={charset}"}
    for method in ("GET", "POST"):
        response = requests.request(method, SITE + path, data="a=b", headers=headers, timeout=10)
        assert response.status_code < 500
        assert response.json()["meta"]["code"] == response.status_code


def test_sign_up_with_json(one):
    name = new_username()
    body = {"client_id": "phone", "username": name, "password": "correct horse", "email": f"{name}@example.com"}
    response = requests.post(f"{SITE}/v1/accounts", json=body, timeout=10)
    assert response.json()["data"]["user"]["username"] == name


def test_next_url_is_absolute_and_keeps_the_parameters(one):
    for _ in range(3):
        one.publish()
    eventually(lambda: len(one.feed()) == 3)
    response = get("/v1/users/self/feed", params={"count": 1, "access_token": one.token, "callback": ""}).json()
    pagination = response["pagination"]
    assert pagination["next_url"].startswith(f"{SITE}/v1/users/self/feed?")
    second = requests.get(pagination["next_url"], timeout=10).json()
    assert second["data"][0]["id"] != response["data"][0]["id"]
    assert len(second["data"]) == 1


def test_head_is_answered_like_get_without_a_body(one):
    head, got = (one.call(method, "users/self") for method in ("HEAD", "GET"))
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["Content-Length"] == got.headers["Content-Length"] == str(len(got.content))


def test_healthz_and_readyz():
    assert get("/healthz").text == "ok\n"
    assert readyz_without() == (200, [])
    lines = dict(line.split(": ") for line in get("/readyz").text.splitlines())
    assert {"postgres default", "postgres a", "postgres b", "redis shardmap", "redis feeds", "s3"} <= set(lines)
    assert sum(name.startswith(("memcached", "gearmand")) for name in lines) == 4


def readyz_without(*away: str) -> tuple[int, list[str]]:
    """Its status, and the lines that are not ok, as soon as it names these: what it says may be a second old."""

    def asked() -> tuple[int, list[str]] | None:
        response = get("/readyz")
        wrong = [line for line in response.text.splitlines() if not line.endswith(": ok")]
        return (response.status_code, wrong) if [line.split(":")[0] for line in wrong] == [*away] else None

    return eventually(asked)


def test_without_the_map_an_app_server_is_ready_and_says_what_is_away(stopped):
    stopped("redis_shardmap")
    assert readyz_without("redis shardmap") == (200, ["redis shardmap: ConnectionError"])
    status = "<status>redis shardmap: ConnectionError</status>"
    eventually(lambda: status in get("/pingdom.xml").text)


def test_with_one_of_two_an_app_server_is_ready_and_says_which_is_away(stopped):
    stopped("gearmand_2", "memcached_1")
    assert readyz_without("memcached 1", "gearmand 2")[0] == 200


def test_readyz_names_what_is_away(stopped):
    stopped("gearmand")
    assert readyz_without("gearmand 1", "gearmand 2")[0] == 503
    ctl("start", "gearmand")
    eventually(lambda: get("/readyz").status_code == 200)


def test_however_often_it_is_asked_readyz_asks_a_server_once_a_second_and_process():
    def pings() -> int:
        return redis_client(settings.REDIS_FEEDS_URL).info("commandstats")["cmdstat_ping"]["calls"]

    get("/readyz")
    before, began = pings(), time.monotonic()
    for path in ("/readyz", "/pingdom.xml") * 30:
        assert get(path).status_code == 200
    processes = 2  # of gunicorn, in a local stack
    assert pings() - before <= processes * (2 + time.monotonic() - began) < 60
