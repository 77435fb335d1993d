"""Twitter and Facebook as the stack's double of them has them (deploy/doubles/social.py)."""

from urllib.parse import urlsplit

import requests
from django.conf import settings

from tests.support import Person, eventually, new_username, settled

DOUBLE = "http://" + urlsplit(settings.TWITTER_URL).netloc
SERVICES = ("twitter", "facebook")


class Account:
    """Somebody's account at a service, linked unless it shall not be."""

    def __init__(self, one: Person, service: str, username: str = "", *, linked: bool = True) -> None:
        self.person, self.service, self.username = one, service, username or new_username()
        if linked:
            self.link()

    def link(self, **changes: str) -> dict:
        """Links it as the phone does, and waits until it is known whose account that is."""
        opened = _double("GET", "_account", params=self._who())
        self.id = opened.pop("id")
        answer = self.person.post("shares/accounts", **self._who(), **opened | changes)
        settled(self.person)
        return answer

    def unlink(self) -> None:
        self.person.call("DELETE", "shares/accounts", form={"service": self.service})
        settled(self.person)

    def has_friends(self, *friends: "Account") -> None:
        """Who has this account among its friends at the service."""
        _double("POST", "_friends", json=self._who() | {"friends": [friend.username for friend in friends]})

    def posts(self) -> list[dict]:
        """What was posted: {id, text, link}, the oldest first."""
        return _double("GET", "_posts", params=self._who())["posts"]

    def post_requests(self) -> int:
        """How often it was asked to post, with what it refused: once, where nothing shall be posted twice."""
        return _double("GET", "_posts", params=self._who())["requests"]

    def will_answer(self, *answers: str, to: str = "post") -> None:
        """How the service will answer the next requests for this account."""
        _double("POST", "_told", json=self._who() | {"to": to, "answers": answers})

    def status(self) -> str:
        """Of the link, as the API has it."""
        return next(a["status"] for a in self.person.get("shares/accounts") if a["service"] == self.service)

    def _who(self) -> dict[str, str]:
        return {"service": self.service, "username": self.username}


def share_of(one: Person, media: dict, service: str) -> dict:
    return next(share for share in one.get(f"media/{media['id']}/shares") if share["service"] == service)


def shared(one: Person, service: str, **params) -> tuple[dict, dict]:
    """A new photo that was to be shared, and how that went, when all its jobs are done."""
    media = one.publish(caption="At the sea", **{"share_to[]": [service]}, **params)
    settled(one)
    return media, share_of(one, media, service)


def ended(one: Person, media: dict, service: str, seconds: float = 20) -> dict:
    """How a share went that takes its time."""

    def is_over() -> dict | None:
        share = share_of(one, media, service)
        return share if share["status"] in ("shared", "failed") else None

    return eventually(is_over, seconds, f"media {media['id']} is shared, or not")


def _double(method: str, path: str, **options):
    response = requests.request(method, f"{DOUBLE}/{path}", timeout=10, **options)
    assert response.status_code == 200, response.text
    return response.json()
