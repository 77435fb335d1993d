"""Schemathesis calls all that the API's description has, with good parameters and bad, and holds the answers to it.

What is called, the description alone says: an endpoint is tried as soon as it has a route. Most of what is made up does
not exist, so each operation is also shown examples of what does; and one that never succeeds fails the test.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import schemathesis
from django.conf import settings
from schemathesis.checks import CHECKS

from tests.accounts.test_oauth import Browser, Client
from tests.notifications.developer import geography_at
from tests.support import PASSWORD, Person, get, jpeg, new_username

MADE_UP = 8  # requests an operation, beside some dozens that try the boundaries of each parameter

CONFIG = {
    "suppress-health-check": ["too_slow"],  # says more of the machine
    "base-url": settings.SITE_URL,
    "seed": 1,
    "generation": {
        "deterministic": True,
        "max-examples": MADE_UP,
        "database": "none",
        "with-security-parameters": False,  # each call has a good token, or a good client_id
    },
    "request-timeout": 20,
    "checks": {
        # Wants 401s. Refused credentials are 400s in this API, as they were; test_openapi.py tries them.
        "ignored_auth": {"enabled": False},
        # Wants 2xx for all that is well-formed. Most IDs that are well-formed are nobody's: also a 400.
        "positive_data_acceptance": {"enabled": False},
        # 501 is no failure of ours: oEmbed's word for a format that it does not have.
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 501]},
    },
}

# A subscription asks a server of the client's: it has tests of its own.
SUCCEED_ELSEWHERE = {"POST /v1/subscriptions"}


class World:
    """Somebody who calls, and examples of what there is to name."""

    def __init__(self, with_photo: bool) -> None:
        self.caller, self.friend = Person(), Person()
        self.caller.follow(self.friend)
        self.examples = {
            "user_id": str(self.friend.id),
            "q": "sunset",
            "name": "sunset",
            "lat": 52.5,
            "lng": 13.4,
            "full_name": "Somebody",
            "text": "Nice",
        }
        if with_photo:
            self._take_a_photo()

    def _take_a_photo(self) -> None:
        photo = self.caller.take(caption="A #sunset", latitude=52.5, longitude=13.4, location_name="By the river")
        said = self.friend.post(f"media/{photo['id']}/comments", text="Nice")
        self.friend.follow(self.caller)
        self.caller.post(f"media/{photo['id']}/likes")
        self.examples |= {
            "media_id": photo["id"],
            "comment_id": said["id"],
            "code": photo["link"].split("/")[-2],
            "location_id": photo["location"]["id"],
            "geography_id": str(geography_at("52.5", "13.4")),
            "url": photo["link"],
        }

    def examples_of(self, operation: str) -> dict[str, Any]:
        """Parameters with which an operation succeeds, if it can."""
        phone, name = {"client_id": "phone", "password": PASSWORD}, new_username()
        match operation:
            case "sign_up":
                return phone | {"username": name, "email": f"{name}@example.com"}
            case "access_token":
                return phone | {"grant_type": "password", "username": self.caller.username}
            case "revoke":
                return phone | {"token": self.friend.token}
            case "change_password":
                return {"old_password": PASSWORD, "new_password": f"{PASSWORD} 2"}
            case "delete_account":
                return phone
            case "publish" | "change_avatar":
                return self.examples | {"upload_id": self.caller.upload(jpeg())}
            case "search_users":
                return {"q": self.caller.username}
            case "link_share_account" | "unlink_share_account":
                account = {"service": "twitter", "username": "somebody", "token": "t", "secret": "s"}
                self.caller.post("shares/accounts", **account)
                return account
            case "share_media":
                self.caller.post("shares/accounts", service="facebook", username="somebody", token="t")
                return self.examples | {"share_to": ["facebook"], "share_to[]": ["facebook"]}
            case "list_subscriptions" | "delete_subscriptions":
                client = Client(Browser(self.caller))
                return {"client_id": client.id, "client_secret": client.secret, "object": "all"}
        return self.examples


def closed(schema: Any) -> Any:
    """With no room for fields that the description does not name; clients are told that some may come."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {"additionalProperties": False} if "properties" in schema else {}
    return {key: closed(value) for key, value in schema.items()} | shut


def show(examples: dict[str, Any], operation: dict) -> None:
    """Puts examples into an operation's description."""
    for parameter in operation["parameters"]:
        if parameter["name"] in examples:
            parameter["example"] = examples[parameter["name"]]
    for media_type in operation.get("requestBody", {"content": {}})["content"].values():
        for name, schema in media_type["schema"]["properties"].items():
            if name in examples:
                schema["examples"] = [examples[name]]


@pytest.fixture(scope="module")
def description() -> dict:
    served = get("/developer/openapi.json").json()
    for operations in served["paths"].values():
        for operation in operations.values():
            operation["responses"]["200"] = closed(operation["responses"]["200"])
    served["components"] = closed(served["components"])
    return served


@pytest.fixture(scope="module")
def worlds(description) -> dict[str, World]:
    """By operation. Those that change something have one each: what they break is theirs alone, as are rate limits."""
    names = [f"{method.upper()} {path}" for path, methods in description["paths"].items() for method in methods]
    changing = [name for name in names if not name.startswith("GET")]
    with ThreadPoolExecutor(4) as pool:
        reading, *others = pool.map(World, [True, *("{media_id}" in name for name in changing)])
    return dict.fromkeys(names, reading) | dict(zip(changing, others, strict=True))


@pytest.fixture(scope="module")
def config(description, worlds) -> dict:
    """Shows each operation its examples; half of the paths that are made up are of things that exist."""
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            show(worlds[f"{method.upper()} {path}"].examples_of(operation["operationId"]), operation)
    there = [world.examples for world in worlds.values() if "media_id" in world.examples]
    known = {name: list({str(one[name]) for one in there}) for name in there[0]}
    return CONFIG | {
        "dictionaries": {name: {"values": values} for name, values in known.items()},
        "parameters": {f"path.{name}": {"dictionary": name, "probability": 0.5} for name in known},
    }


@pytest.fixture(scope="module")
def with_a_token(description, config):
    return schemathesis.openapi.from_dict(description, config=schemathesis.Config.from_dict(config))


@pytest.fixture(scope="module")
def with_a_client_id(description, config):
    """Those operations that a client may ask without a token."""
    paths = {
        path: {method: one for method, one in methods.items() if {"client_id": []} in one["security"]}
        for path, methods in description["paths"].items()
    }
    config = config | {"phases": {"coverage": {"enabled": False}}}
    return schemathesis.openapi.from_dict(description | {"paths": paths}, config=schemathesis.Config.from_dict(config))


@pytest.fixture(scope="module")
def client() -> Client:
    return Client(Browser(Person()))


@pytest.fixture(autouse=True)
def node_id(request):
    """Schemathesis 4.32 asks for an attribute that pytest 9.2 no longer has."""
    request.node._nodeid = request.node.nodeid


@pytest.fixture(scope="module")
def succeeded(worlds) -> Iterator[set[str]]:
    names: set[str] = set()
    yield names
    assert set(worlds) - names == SUCCEED_ELSEWHERE, "an operation never succeeds: World has no examples for it"


def check(case, response) -> None:
    """All of Schemathesis' checks; but an empty value means that nothing was given, whatever the schema says of it."""
    sent = [urlsplit(response.request.url).query]
    if case.media_type == "application/x-www-form-urlencoded":
        sent.append(response.request.body or "")
    values = [value for text in sent for _, value in parse_qsl(text, keep_blank_values=True)]
    values += case.body.values() if case.media_type == "application/json" and isinstance(case.body, dict) else []
    unfit = CHECKS.get_by_names(["negative_data_rejection"]) if "" in values else []
    case.validate_response(response, excluded_checks=unfit)


@pytest.mark.slow
@schemathesis.pytest.from_fixture("with_a_token").parametrize()
def test_every_answer_is_as_described(case, worlds, succeeded):
    token = worlds[case.operation.label].caller.token
    response = case.call(headers={"Authorization": f"Bearer {token}"})
    if response.status_code == 200:
        succeeded.add(case.operation.label)
    check(case, response)


@schemathesis.pytest.from_fixture("with_a_client_id").parametrize()
def test_what_is_public_is_as_described(case, client):
    check(case, case.call(params={"client_id": client.id}))
