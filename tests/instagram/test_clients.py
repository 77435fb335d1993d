"""Clients without a token, and requests that are signed."""

import hashlib
import hmac
import secrets
from urllib.parse import quote

import pytest
import requests
from django.conf import settings

from instagram.api.signatures import sign
from tests.accounts.test_oauth import Browser, Client
from tests.support import Person, get, settled

SITE = settings.SITE_URL


def read(path: str, client_id: str = "phone", **params) -> requests.Response:
    """A GET with a client_id and no token."""
    return get(f"/v1/{path}", params={"client_id": client_id, **params})


def data(response: requests.Response):
    assert response.status_code == 200, response.text
    return response.json()["data"]


def error_type(response: requests.Response) -> str:
    meta = response.json()["meta"]
    assert meta["code"] == response.status_code
    return meta["error_type"]


def generate_sig(endpoint: str, params: dict, secret: str) -> str:
    """As clients do it: Instagram's "Secure API Requests", python-instagram's `_generate_sig`."""
    sig = endpoint
    for key in sorted(params.keys()):
        sig += f"|{key}={params[key]}"
    return hmac.new(secret.encode(), sig.encode(), hashlib.sha256).hexdigest()


@pytest.fixture(scope="module")
def scene():
    """Somebody public and somebody private, each with a photo, and a fan of both who likes and comments."""
    public, private, fan = Person(), Person(), Person()
    fan.follow(public)
    fan.follow(private)
    tag = f"t{secrets.token_hex(6)}"
    media = {one: one.take(caption=f"a #{tag}") for one in (public, private)}
    for photo in media.values():
        fan.post(f"media/{photo['id']}/likes")
        fan.post(f"media/{photo['id']}/comments", text="well")
    private.post("accounts/edit", is_private="true")
    settled(public, private, fan)
    return public, private, fan, {one: photo["id"] for one, photo in media.items()}, tag


@pytest.fixture(scope="module")
def developer() -> Browser:
    return Browser(Person())


@pytest.fixture(scope="module")
def signing(developer) -> Client:
    """A client whose requests have to be signed."""
    client = Client(developer)
    developer.submit(developer.open(client.path), "Save", must_sign="on")
    return client


@pytest.fixture(scope="module")
def token(developer, signing) -> str:
    return signing.token_of(developer, scope="basic comments likes relationships")


# Without a token.


def test_a_client_reads_what_is_public(scene):
    public, _, fan, media, tag = scene
    photo = media[public]
    assert data(read(f"users/{public.id}"))["counts"] == {"media": 1, "follows": 0, "followed_by": 1}
    assert [one["id"] for one in data(read(f"users/{public.id}/media/recent"))] == [photo]
    assert data(read(f"media/{photo}"))["id"] == photo
    code = data(read(f"media/{photo}"))["link"].split("/")[-2]
    assert data(read(f"media/shortcode/{code}"))["id"] == photo
    assert [one["text"] for one in data(read(f"media/{photo}/comments"))] == ["well"]
    assert [one["id"] for one in data(read(f"media/{photo}/likes"))] == [str(fan.id)]
    assert [one["id"] for one in data(read("users/search", q=public.username))] == [str(public.id)]
    assert [one["id"] for one in data(read(f"users/{public.id}/followed-by"))] == [str(fan.id)]
    assert str(public.id) in [one["id"] for one in data(read(f"users/{fan.id}/follows"))]
    assert [one["id"] for one in data(read(f"tags/{tag}/media/recent"))] == [photo]
    assert isinstance(data(read("media/popular")), list)


def test_nobody_has_liked_anything(scene):
    public, _, fan, media, _ = scene
    assert fan.get(f"media/{media[public]}")["user_has_liked"] is True
    assert data(read(f"media/{media[public]}"))["user_has_liked"] is False


def test_a_client_sees_nothing_of_a_private_account_but_its_profile(scene):
    _, private, fan, media, tag = scene
    assert data(read(f"users/{private.id}"))["id"] == str(private.id)
    for path in (
        f"users/{private.id}/media/recent",
        f"users/{private.id}/follows",
        f"users/{private.id}/followed-by",
        f"media/{media[private]}",
        f"media/{media[private]}/comments",
        f"media/{media[private]}/likes",
    ):
        assert error_type(read(path)) == "APINotAllowedError", path
        assert fan.call("GET", path).status_code == 200
    assert media[private] not in [one["id"] for one in data(read(f"tags/{tag}/media/recent"))]
    assert media[private] not in [one["id"] for one in data(read("media/popular", count=100))]


@pytest.mark.parametrize("client_id", ["nobody", "", "x" * 300, "a b", "é", "a\nb", "phone "])
def test_an_unknown_client_is_refused(scene, client_id):
    assert error_type(read(f"users/{scene[0].id}", client_id)) == "OAuthParameterException"


@pytest.mark.parametrize("path", ["users/self", "users/self/media/recent", "users/self/follows"])
def test_without_a_token_there_is_no_self(path):
    assert error_type(read(path)) == "OAuthParameterException"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "users/self/feed"),
        ("GET", "users/self/media/liked"),
        ("GET", "users/self/requested-by"),
        ("GET", "users/1/relationship"),
        ("POST", "users/1/relationship"),
        ("POST", "media/1/likes"),
        ("POST", "media/1/comments"),
        ("DELETE", "media/1"),
        ("POST", "media/uploads"),
        ("POST", "accounts/edit"),
    ],
)
def test_what_is_somebodys_takes_a_token(method, path):
    response = requests.request(method, f"{SITE}/v1/{path}", params={"client_id": "phone"}, timeout=20)
    assert error_type(response) == "OAuthParameterException"


def test_a_wrong_token_is_not_saved_by_a_client_id(scene):
    assert error_type(read(f"users/{scene[0].id}", access_token="wrong")) == "OAuthAccessTokenException"


def test_a_client_walks_pages_by_next_url(scene):
    public = scene[0]
    fans = [Person() for _ in range(2)]
    for fan in fans:  # one after the other: whose follow is written first in the shard of the followee, stands lower
        fan.follow(public)
        settled(public, fan)
    found, url = [], f"{SITE}/v1/users/{public.id}/followed-by?client_id=phone&count=1"
    while url:
        page = requests.get(url, timeout=20).json()
        found += [one["id"] for one in page["data"]]
        url = page["pagination"].get("next_url")
    assert found == [str(one.id) for one in (*fans[::-1], scene[2])]


def test_a_deleted_client_reads_nothing_more(scene, developer):
    client = Client(developer)
    assert read(f"users/{scene[0].id}", client.id).status_code == 200
    developer.submit(developer.open(f"{client.path}delete/"), "Delete")
    assert error_type(read(f"users/{scene[0].id}", client.id)) == "OAuthParameterException"


# Signed.


def test_instagrams_own_examples():
    """From its page "Secure API Requests"."""
    secret, token = "6dc1787668c64c939929c17683d7cb74", "fb2e77d.47a0479900504cb3ab4a1f626d174d2d"
    one = sign("/users/self", {"access_token": token}, secret)
    assert one == "cbf5a1f41db44412506cb6563a3218b50f45a710c7a8a65a3e9b18315bb338bf"
    two = sign("/media/657988443280050001_25025320", {"count": "10", "access_token": token}, secret)
    assert two == "260634b241a6cfef5e4644c205fb30246ff637591142781b86e2075faf1b163a"


def signed(client: Client, endpoint: str, params: dict) -> requests.Response:
    return get(f"/v1{endpoint}", params=params | {"sig": generate_sig(endpoint, params, client.secret)})


@pytest.mark.parametrize("endpoint", ["/users/self", "/users/self.json", "/users/self/", "/users/self/media/recent"])
def test_a_right_signature_passes(signing, token, endpoint):
    assert signed(signing, endpoint, {"access_token": token, "count": "3"}).status_code == 200


def test_names_are_signed_as_they_are_sent(signing, token):
    endpoint = f"/tags/{quote('é')}/media/recent.json"
    assert signed(signing, endpoint, {"access_token": token, "count": "3"}).status_code == 200


def test_text_with_signs_of_all_kinds_passes(signing, token):
    assert signed(signing, "/users/search", {"access_token": token, "q": "é|a=b&c +%", "count": ""}).status_code == 200


def test_a_client_without_a_token_signs_too(signing, developer):
    endpoint, params = f"/users/{developer.person.id}", {"client_id": signing.id}
    assert error_type(get(f"/v1{endpoint}", params=params)) == "OAuthForbiddenException"
    assert signed(signing, endpoint, params).status_code == 200


@pytest.mark.parametrize("how", ["query", "bearer"])
def test_a_missing_signature_is_a_403(token, how):
    options = {
        "query": {"params": {"access_token": token}},
        "bearer": {"headers": {"Authorization": f"Bearer {token}"}},
    }
    response = get("/v1/users/self", **options[how])
    assert response.status_code == 403
    assert error_type(response) == "OAuthForbiddenException"
    assert "Missing required parameter 'sig'" in response.json()["meta"]["error_message"]
    assert "X-Ratelimit-Remaining" in response.headers


@pytest.mark.parametrize("change", ["secret", "endpoint", "value", "more", "fewer", "sig", "no text"])
def test_a_wrong_signature_is_a_403(signing, token, change):
    params = {"access_token": token, "count": "3"}
    secret, endpoint, sent = signing.secret, "/users/self/media/recent", dict(params)
    if change == "secret":
        secret = "-" + secret[1:]  # which no secret has
    if change == "endpoint":
        endpoint = "/v1/users/self/media/recent"
    if change == "value":
        sent["count"] = "4"
    if change == "more":
        sent["min_id"] = "1"
    if change == "fewer":
        del sent["count"]
    sig = generate_sig(endpoint, params, secret)
    sig = {"sig": sig[:-1] + "x", "no text": "é"}.get(change, sig)
    response = get("/v1/users/self/media/recent", params=sent | {"sig": sig})
    assert response.status_code == 403
    assert error_type(response) == "OAuthForbiddenException"
    assert "does not match" in response.json()["meta"]["error_message"]


def test_a_form_is_signed_with_its_fields(signing, token, scene):
    photo, text = scene[3][scene[0]], f"well signed, {secrets.token_hex(4)}"
    endpoint = f"/media/{photo}/comments"
    form = {"access_token": token, "text": text}
    sig = generate_sig(endpoint, form, signing.secret)
    tampered = requests.post(f"{SITE}/v1{endpoint}", data=form | {"sig": sig, "text": "not what I said"}, timeout=20)
    assert error_type(tampered) == "OAuthForbiddenException"
    assert data(requests.post(f"{SITE}/v1{endpoint}", data=form | {"sig": sig}, timeout=20))["text"] == text
    as_json = requests.post(f"{SITE}/v1{endpoint}", json=form | {"sig": sig}, timeout=20)
    assert data(as_json)["text"] == text
    assert error_type(requests.post(f"{SITE}/v1{endpoint}", data=form, timeout=20)) == "OAuthForbiddenException"


def test_python_instagrams_ways_pass(signing, token, scene):
    """What version 1.3.2 sends: two signatures in a GET, the last one right; text as b'…'; a form left unsigned."""
    first = generate_sig("/users/search.json", {"access_token": token}, signing.secret)
    last = generate_sig("/users/search.json", {"access_token": token, "count": 3, "q": b"abc"}, signing.secret)
    query = f"access_token={token}&sig={first}&q=abc&count=3&sig={last}"
    assert get(f"/v1/users/search.json?{query}").status_code == 200
    endpoint = f"/users/{scene[0].id}/relationship.json"
    sig = generate_sig(endpoint, {"access_token": token}, signing.secret)
    url = f"{SITE}/v1{endpoint}?access_token={token}&sig={sig}"
    assert data(requests.post(url, data={"action": "follow"}, timeout=20))["outgoing_status"] == "follows"
    url = f"{SITE}/v1{endpoint}?access_token={token}&sig={first}"
    assert error_type(requests.post(url, data={"action": "follow"}, timeout=20)) == "OAuthForbiddenException"


def test_next_url_is_signed_for_who_signed(signing, token, developer):
    for _ in range(3):
        Person().follow(developer.person)
    settled(developer.person)
    endpoint = f"/users/{developer.person.id}/followed-by"
    page = signed(signing, endpoint, {"access_token": token, "count": "1"}).json()
    seen = []
    while True:
        seen += [one["id"] for one in page["data"]]
        if "next_url" not in page["pagination"]:
            break
        page = requests.get(page["pagination"]["next_url"], timeout=20).json()
        assert page["meta"]["code"] == 200
    assert len(seen) == len(set(seen)) == 3


def test_a_signature_that_is_not_asked_for_is_checked_too(developer):
    client = Client(developer)
    params = {"access_token": client.token_of(developer)}
    assert get("/v1/users/self", params=params).status_code == 200
    assert signed(client, "/users/self", params).status_code == 200
    response = get("/v1/users/self", params=params | {"sig": "0" * 64})
    assert error_type(response) == "OAuthForbiddenException"


def test_asking_for_signatures_and_a_new_secret_take_effect_at_once(developer):
    client = Client(developer)
    params = {"access_token": client.token_of(developer)}
    assert get("/v1/users/self", params=params).status_code == 200
    page = developer.submit(developer.open(client.path), "Save", must_sign="on")
    assert 'name="must_sign" checked' in page.text
    assert get("/v1/users/self", params=params).status_code == 403
    assert signed(client, "/users/self", params).status_code == 200
    old = client.secret
    page = developer.submit(developer.open(f"{client.path}secret/"), "Make a new secret")
    assert signed(client, "/users/self", params).status_code == 403
    client.secret = page.text.split('id="client_secret">')[1].split("<")[0]
    assert client.secret != old
    assert signed(client, "/users/self", params).status_code == 200
    page = developer.submit(developer.open(client.path), "Save", drop="must_sign")
    assert 'name="must_sign" checked' not in page.text
    assert get("/v1/users/self", params=params).status_code == 200


def test_a_public_client_has_nothing_to_sign_with(developer):
    client = Client(developer, public=True)
    page = developer.submit(developer.open(client.path), "Save", must_sign="on")
    assert "must_sign" not in page.text
    token = client.token_of(developer)
    assert get("/v1/users/self", params={"access_token": token}).status_code == 200
