"""Rate limits: the counter by itself with a clock of its own, then the limits at the edge."""

import secrets

import pytest
import requests
from django.conf import settings
from django.test import RequestFactory
from requests.adapters import HTTPAdapter

from instagram.api import limits
from instagram.api.limits import Limit, Standing
from shardmap.redis_client import redis_client
from tests.accounts.test_oauth import Browser, Client
from tests.support import PASSWORD, Person, ctl, eventually, get, new_username

SITE = settings.SITE_URL
HOUR = 3600
T = 500_000 * HOUR  # a full hour, some time ago


def redis():
    return redis_client(settings.REDIS_FEEDS_URL)


def new_limit(most: int, tag: str = "") -> Limit:
    return Limit(f"limit:{{{tag or secrets.token_hex(8)}}}:{secrets.token_hex(8)}", most)


def asked(now: float, *of: Limit) -> Standing:
    return limits.ask(of, now)


def passes(now: float, *of: Limit) -> bool:
    return asked(now, *of).wait == 0


def use_up(limit: Limit) -> None:
    """As if so much had been asked in this hour that the limit stays reached well into the next."""
    hour = redis().time()[0] // HOUR
    redis().set(limit.key, f"{hour} {2 * limit.most} 0", ex=2 * HOUR)


def requests_of(token: str, scope: str = "") -> Limit:
    return limits.of_token(token, scope)[-1]


def request_from(address: str, **form):
    return RequestFactory().post("/", form, HTTP_X_FORWARDED_FOR=address)


def refused(response: requests.Response) -> None:
    """A 429 that says when to come back."""
    meta = response.json()["meta"]
    assert response.status_code == meta["code"] == 429
    assert meta["error_type"] == "OAuthRateLimitException"
    assert response.headers["X-Ratelimit-Remaining"] == "0"
    assert 0 < int(response.headers["Retry-After"]) <= 2 * HOUR


def remaining(response: requests.Response) -> int:
    return int(response.headers["X-Ratelimit-Remaining"])


class Address(requests.Session):
    """A machine with an IP address of its own; all of 127.0.0.0/8 is this one."""

    def __init__(self) -> None:
        super().__init__()
        self.address = ".".join(["127", *(str(secrets.randbelow(250) + 2) for _ in range(3))])
        adapter = HTTPAdapter()
        adapter.init_poolmanager(2, 2, source_address=(self.address, 0))
        self.mount(SITE, adapter)

    def sign_up(self, **options) -> requests.Response:
        name = new_username()
        form = {"client_id": "phone", "username": name, "password": PASSWORD, "email": f"{name}@example.com"}
        return self.post(f"{SITE}/v1/accounts", data=form, timeout=20, **options)


def log_in(username: str, password: str = PASSWORD, session=requests, **options) -> requests.Response:
    form = {"client_id": "phone", "grant_type": "password", "username": username, "password": password}
    return session.post(f"{SITE}/oauth/access_token", data=form, timeout=20, **options)


# The counter.


def test_so_many_pass_and_no_more():
    limit = new_limit(3)
    assert [asked(T, limit) for _ in range(3)] == [Standing(3, 2, 0), Standing(3, 1, 0), Standing(3, 0, 0)]
    refusal = asked(T, limit)
    assert (refusal.most, refusal.remaining) == (3, 0)
    assert refusal.wait > 0


def test_the_hour_slides():
    limit = new_limit(100)
    for _ in range(100):
        assert passes(T, limit)
    assert not passes(T + HOUR - 1, limit)  # as far as a clock hour would know, all is forgotten in a second
    assert not passes(T + HOUR, limit)
    assert asked(T + HOUR + HOUR / 4, limit).remaining == 24  # three quarters of 100 still weigh, and this one
    assert asked(T + HOUR + HOUR / 2, limit).remaining == 48
    assert asked(T + 2 * HOUR, limit).remaining == 97  # these two weigh in full, and there is one more
    assert asked(T + 4 * HOUR, limit).remaining == 99


def test_two_bursts_at_a_full_hour_are_one():
    """A burst at the end of a clock hour, and one at the beginning of the next: a fixed window lets both through."""
    limit = new_limit(50)
    late = sum(passes(T + HOUR - 1, limit) for _ in range(60))
    early = sum(passes(T + HOUR + 1, limit) for _ in range(60))
    assert (late, early) == (50, 0)


@pytest.mark.parametrize("most", [1, 2, 7, 5000])
@pytest.mark.parametrize("second", [0, 1, 1799.5, 3599])
def test_retry_after_is_when_a_request_passes_again(most, second):
    limit = new_limit(most)
    redis().set(limit.key, f"{T // HOUR} {most} 0")
    now = T + second
    wait = asked(now, limit).wait
    assert not passes(now + wait - 1, limit)
    assert passes(now + wait, limit)


def test_retry_after_within_the_hour_that_follows():
    limit = new_limit(10)
    for _ in range(10):
        assert passes(T, limit)
    now = T + HOUR
    while passes(now, limit):  # nothing but what the last hour's requests leave free
        pass
    wait = asked(now, limit).wait
    assert wait == HOUR / 10
    assert not passes(now + wait - 1, limit)
    assert passes(now + wait, limit)


def test_a_refused_request_does_not_count():
    limit = new_limit(2)
    for _ in range(2):
        assert passes(T, limit)
    wait = asked(T, limit).wait
    for _ in range(20):
        assert not passes(T + 1, limit)
    assert passes(T + wait, limit)


def test_what_one_limit_refuses_counts_for_none():
    wide = new_limit(10, "same")
    narrow = new_limit(1, "same")
    assert asked(T, wide, narrow) == Standing(1, 0, 0)  # the nearest
    for _ in range(3):
        assert not passes(T, wide, narrow)
    assert asked(T, wide) == Standing(10, 8, 0)


def test_a_clock_that_jumps_does_no_harm():
    limit = new_limit(5)
    for now in (T, T + 50 * HOUR, T - 50 * HOUR, T + 0.001):
        assert asked(now, limit).remaining == 4


def test_a_counter_stays_small_and_goes_by_itself():
    limit = new_limit(5000)
    assert passes(T, limit)
    small = redis().memory_usage(limit.key)
    for n in range(3000):
        assert passes(T + n, limit)
    assert redis().memory_usage(limit.key) <= small + 16
    assert HOUR < redis().ttl(limit.key) <= 2 * HOUR


def test_the_clock_is_that_of_redis():
    limit = new_limit(5)
    assert limits.ask([limit]).remaining == 4
    assert limits.ask([limit]).remaining == 3


# At the edge: a token's requests.


def test_answers_say_what_is_left(person):
    one = person()
    first, second = one.call("GET", "users/self"), one.call("GET", "users/0")
    assert second.status_code == 400
    assert [response.headers["X-Ratelimit-Limit"] for response in (first, second)] == ["5000", "5000"]
    assert remaining(first) - remaining(second) == 1
    assert "Retry-After" not in first.headers


def test_over_the_limit_is_a_429_for_that_token_alone(person):
    one, other = person(), person()
    second_phone = log_in(one.username).json()["access_token"]
    use_up(requests_of(one.token))
    refused(one.call("GET", "users/self"))
    refused(one.call("GET", "users/self/feed"))
    refused(one.call("POST", "accounts/edit", form={"bio": "I do not stop"}))
    assert get("/v1/users/self", params={"access_token": second_phone}).json()["data"]["bio"] == ""
    assert other.call("GET", "users/self").status_code == 200


def test_a_token_is_the_same_wherever_it_stands(person):
    one = person()
    use_up(requests_of(one.token))
    refused(get("/v1/users/self", params={"access_token": one.token}))
    refused(get("/v1/users/self", headers={"Authorization": f"bearer  {one.token} "}))


@pytest.mark.parametrize("token", ["unknown", "client"])
def test_what_is_no_token_leaves_no_counter(token):
    token = f"{token}{secrets.token_hex(8)}"
    for params in ({"access_token": token}, {"client_id": token}):
        response = get("/v1/users/1", params=params)
        assert response.status_code == 400
        assert "X-Ratelimit-Limit" not in response.headers
    assert redis().exists(requests_of(token).key, *(limit.key for limit in limits.of_client(token))) == 0


def test_comments_have_a_limit_of_their_own(person):
    one = person()
    media = one.take()
    said = one.post(f"media/{media['id']}/comments", text="one")
    response = one.call("POST", f"media/{media['id']}/comments", form={"text": "two"})
    assert response.headers["X-Ratelimit-Limit"] == str(settings.RATE_LIMITS["comments"])
    assert remaining(response) == settings.RATE_LIMITS["comments"] - 2
    use_up(requests_of(one.token, "comments"))
    refused(one.call("POST", f"media/{media['id']}/comments", form={"text": "three"}))
    one.delete(f"media/{media['id']}/comments/{said['id']}")
    assert [comment["text"] for comment in one.get(f"media/{media['id']}/comments")] == ["two"]
    one.post(f"media/{media['id']}/likes")


def test_likes_have_a_limit_of_their_own(person):
    one = person()
    media = one.take()
    use_up(requests_of(one.token, "likes"))
    refused(one.call("POST", f"media/{media['id']}/likes"))
    assert one.get(f"media/{media['id']}")["likes"]["count"] == 0
    assert one.call("DELETE", f"media/{media['id']}/likes").status_code == 200


def test_follows_have_a_limit_of_their_own(person):
    one, other = person(), person()
    use_up(requests_of(one.token, "relationships"))
    refused(one.call("POST", f"users/{other.id}/relationship", form={"action": "follow"}))
    assert one.get(f"users/{other.id}/relationship")["outgoing_status"] == "none"
    assert one.get("users/self/requested-by") == []


# At the edge: a client's requests, sign-ups, logins.


def test_a_clients_requests_without_a_token_have_their_own_counter(person):
    one = person()
    params = {"client_id": Client(Browser(one)).id}
    first, second = (get(f"/v1/users/{one.id}", params=params) for _ in range(2))
    assert (remaining(first), remaining(second)) == (4999, 4998)
    with_token = get(f"/v1/users/{one.id}", params=params | {"access_token": one.token})
    assert remaining(with_token) == 4999


def test_sign_ups_are_counted_by_address():
    here, there = Address(), Address()
    most = settings.RATE_LIMITS["sign_ups"]
    assert [remaining(here.sign_up()) for _ in range(2)] == [most - 1, most - 2]
    # Whatever a client claims to be, is not believed.
    assert remaining(here.sign_up(headers={"X-Forwarded-For": there.address})) == most - 3
    assert remaining(there.sign_up()) == most - 1
    use_up(*limits.of_address(request_from(here.address), "sign_ups"))
    refused(here.sign_up())
    assert there.sign_up().status_code == 200


def test_logins_are_counted_by_address(person):
    here, there, one = Address(), Address(), person()
    assert log_in(one.username, session=here).status_code == 200
    use_up(limits.of_login(request_from(here.address, username="", password=""))[1])
    refused(log_in(one.username, session=here))
    assert log_in(one.username, session=there).status_code == 200


def test_logins_are_counted_by_username(person):
    one, other = person(), person()
    most = settings.RATE_LIMITS["logins_of_user"]
    assert remaining(log_in(one.username, "wrong")) == most - 1
    assert remaining(log_in(one.username.upper())) == most - 2
    use_up(limits.of_login(request_from("", username=one.username, password=""))[0])
    response = log_in(one.username)
    refused(response)
    assert response.json()["error_type"] == "OAuthRateLimitException"  # where OAuth clients look for it
    no_type = {"Content-Type": None}
    body = f"client_id=phone&grant_type=password&username={one.username}&password=x"
    refused(requests.post(f"{SITE}/oauth/access_token", data=body, headers=no_type, timeout=20))
    assert log_in(other.username).status_code == 200
    assert one.call("GET", "users/self").status_code == 200


def test_the_login_page_has_the_same_limits(person):
    one = person()
    browser = Browser()
    browser.person = one
    use_up(limits.of_login(request_from("", username=one.username, password=""))[0])
    page = browser.open("/accounts/login/")
    assert page.status_code == 200
    answer = browser.log_in(page)
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0
    assert not browser.is_logged_in()


def test_without_redis_all_requests_pass(stopped):
    one = Person()
    use_up(requests_of(one.token))
    refused(one.call("GET", "users/self"))
    stopped("redis_feeds")
    response = one.call("GET", "users/self")
    assert response.status_code == 200
    assert "X-Ratelimit-Limit" not in response.headers
    assert log_in(one.username).status_code == 200
    assert get(f"/v1/users/{one.id}", params={"client_id": "phone"}).status_code == 200
    assert limits.ask([new_limit(1)]) is None
    ctl("start", "redis_feeds")
    eventually(lambda: "X-Ratelimit-Limit" in Person().call("GET", "users/self").headers)
