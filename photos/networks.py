"""Twitter and Facebook: what sharing needs of them, and what their errors mean. See docs/sharing.md.

Their base URLs and our keys there are settings. Credentials, {token, secret}, travel in headers and bodies alone, never
in a URL, and so in no log and no error.
"""

import hmac
import secrets
import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl, urlencode

import requests
from django.conf import settings
from requests_oauthlib import OAuth1

TIMEOUTS = (3, 10)  # seconds to connect, and to wait for bytes of an answer
RATE_LIMIT_SECONDS = 15 * 60  # Twitter's window; unless a service says when to come again
LONGEST_WAIT = 24 * 3600
# Of 2011. Today's 280 count the characters of some scripts twice, so what has 140 fits there, too.
LONGEST_TWEET = 140
LOOKED_THROUGH = 200  # of the latest posts; more than anybody posts between two tries

FRIENDS_A_PAGE = 5000


class Refused(Exception):
    """The service does not want this, and will not later; the message is for the user."""


class LinkBroken(Refused):
    """What opens the account has expired or was revoked."""

    def __init__(self, title: str) -> None:
        super().__init__(f"{title} lets us in no longer. Please link your account again.")


class Duplicate(Exception):
    """The same was posted before."""


class Busy(Exception):
    """A rate limit: nothing was posted, and may be after some seconds."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"wait for {seconds} s")
        self.seconds = seconds


class Away(Exception):
    """No answer, or one that says nothing: what was asked for may have been done, or not."""


class WrongSignature(Away):
    """Twitter's word for our keys, this machine's clock, or a secret that is not the token's: one user's, or all."""


class Account(NamedTuple):
    """An account at a service, and what opens it."""

    username: str
    token: str
    secret: str | None


class Network(Protocol):
    title: str

    def is_offered(self) -> bool:
        """Whether this installation has keys for it."""

    def begin(self, callback: str) -> tuple[str, dict[str, str]]:
        """Where the user is to be sent to allow us in, and what to keep in the session until the user comes back."""

    def finish(self, callback: str, kept: dict[str, str], answer: Mapping[str, str]) -> Account | None:
        """The account that the user came back with; None if the user said no. Raises Refused, Away."""

    def post(self, credentials: dict, caption: str, link: str) -> str:
        """Posts; returns the post's ID. Raises Refused, LinkBroken, Duplicate, Busy, Away."""

    def find(self, credentials: dict, link: str) -> str | None:
        """The ID of the user's latest post with this link. Raises Refused, LinkBroken, Busy, Away."""

    def me(self, credentials: dict) -> str:
        """The ID that the account has at the service. Raises as `find`."""

    def friends(self, credentials: dict, cursor: str) -> tuple[list[str], str]:
        """The IDs of a page of those who have the user among their friends, and the next page's cursor, "" if none.

        The first page's cursor is "". Raises as `find`.
        """


class Twitter:
    """OAuth 1.0a and the API 1.1."""

    title = "Twitter"

    def is_offered(self) -> bool:
        return bool(settings.TWITTER_KEY)

    def begin(self, callback: str) -> tuple[str, dict[str, str]]:
        token = self._tokens("request_token", callback_uri=callback)
        url = f"{settings.TWITTER_URL}/oauth/authorize?{urlencode({'oauth_token': token['oauth_token']})}"
        return url, {"token": token["oauth_token"], "secret": token["oauth_token_secret"]}

    def finish(self, callback: str, kept: dict[str, str], answer: Mapping[str, str]) -> Account | None:
        token = answer.get("oauth_token") or answer.get("denied", "")
        if not _same(token, kept["token"]):
            raise Refused("This is not the answer that we were waiting for. Please begin anew.")
        if "denied" in answer:
            return None
        verifier = answer.get("oauth_verifier", "")
        opened = self._tokens(
            "access_token", resource_owner_key=token, resource_owner_secret=kept["secret"], verifier=verifier
        )
        return Account(opened["screen_name"], opened["oauth_token"], opened["oauth_token_secret"])

    def post(self, credentials: dict, caption: str, link: str) -> str:
        room = LONGEST_TWEET - len(link) - 1
        caption = " ".join(caption.split())
        if len(caption) > room:
            caption = f"{caption[: room - 1]}…"
        return self._ask("POST", "statuses/update", credentials, {"status": f"{caption} {link}".strip()})["id_str"]

    def find(self, credentials: dict, link: str) -> str | None:
        # The text has a short URL of Twitter's instead.
        for tweet in self._ask("GET", "statuses/user_timeline", credentials, {"count": LOOKED_THROUGH}):
            if any(url["expanded_url"] == link for url in tweet["entities"]["urls"]):
                return tweet["id_str"]
        return None

    def me(self, credentials: dict) -> str:
        return self._ask("GET", "account/verify_credentials", credentials, {})["id_str"]

    def friends(self, credentials: dict, cursor: str) -> tuple[list[str], str]:
        # Followers: whoever the user follows may be anybody, and has not asked to hear of the user.
        params = {"cursor": cursor or "-1", "count": FRIENDS_A_PAGE, "stringify_ids": "true"}
        page = self._ask("GET", "followers/ids", credentials, params)
        return page["ids"], page["next_cursor_str"].removeprefix("0")

    def _ask(self, method: str, path: str, credentials: dict, params: dict):
        auth = OAuth1(settings.TWITTER_KEY, settings.TWITTER_SECRET, credentials["token"], credentials["secret"])
        where = {"data" if method == "POST" else "params": params}
        response = _request(method, f"{settings.TWITTER_URL}/1.1/{path}.json", auth=auth, **where)
        answer = _json(response)
        if response.status_code == 200:
            return answer
        error = (answer.get("errors") or [{}])[0]
        match response.status_code, error.get("code"):
            case 401, 89:
                raise LinkBroken(self.title)
            case 403, 187:
                raise Duplicate
            case (429, _) | (_, 88 | 185):
                raise _busy(response)
            case 401, _:
                raise WrongSignature(f"Twitter does not know us: {error}")
        raise Refused(f"Twitter says: {error.get('message') or response.status_code}")

    def _tokens(self, path: str, **signed: str) -> dict[str, str]:
        auth = OAuth1(settings.TWITTER_KEY, settings.TWITTER_SECRET, **signed)
        response = _request("POST", f"{settings.TWITTER_URL}/oauth/{path}", auth=auth)
        if response.status_code != 200:
            raise Refused("Twitter did not let us in. Please begin anew.")
        return dict(parse_qsl(response.text))


class Facebook:
    """OAuth 2 and the Graph API."""

    title = "Facebook"

    def is_offered(self) -> bool:
        return bool(settings.FACEBOOK_ID)

    def begin(self, callback: str) -> tuple[str, dict[str, str]]:
        state = secrets.token_urlsafe(32)
        asked = {
            "client_id": settings.FACEBOOK_ID,
            "redirect_uri": callback,
            "response_type": "code",
            "state": state,
            "scope": "publish_actions,user_posts,user_friends",
        }
        return f"{settings.FACEBOOK_LOGIN_URL}/dialog/oauth?{urlencode(asked)}", {"state": state}

    def finish(self, callback: str, kept: dict[str, str], answer: Mapping[str, str]) -> Account | None:
        if not _same(answer.get("state", ""), kept["state"]):
            raise Refused("This is not the answer that we were waiting for. Please begin anew.")
        if "error" in answer:
            return None
        client = {"client_id": settings.FACEBOOK_ID, "client_secret": settings.FACEBOOK_SECRET}
        given = {"redirect_uri": callback, "code": answer.get("code", "")}
        token = self._answer(_request("POST", f"{settings.FACEBOOK_URL}/oauth/access_token", data=client | given))
        credentials = {"token": token["access_token"], "secret": None}
        return Account(self._ask("GET", "me", credentials, {"fields": "name"})["name"], **credentials)

    def post(self, credentials: dict, caption: str, link: str) -> str:
        return self._ask("POST", "me/feed", credentials, {"message": caption, "link": link})["id"]

    def find(self, credentials: dict, link: str) -> str | None:
        feed = self._ask("GET", "me/feed", credentials, {"fields": "id,link", "limit": LOOKED_THROUGH})["data"]
        return next((post["id"] for post in feed if post.get("link") == link), None)

    def me(self, credentials: dict) -> str:
        return self._ask("GET", "me", credentials, {"fields": "id"})["id"]

    def friends(self, credentials: dict, cursor: str) -> tuple[list[str], str]:
        params = {"fields": "id", "limit": FRIENDS_A_PAGE} | ({"after": cursor} if cursor else {})
        page = self._ask("GET", "me/friends", credentials, params)
        paging = page.get("paging", {})
        return [friend["id"] for friend in page["data"]], paging["cursors"]["after"] if "next" in paging else ""

    def _ask(self, method: str, path: str, credentials: dict, params: dict):
        where = {"data" if method == "POST" else "params": params}
        headers = {"Authorization": f"Bearer {credentials['token']}"}
        return self._answer(_request(method, f"{settings.FACEBOOK_URL}/{path}", headers=headers, **where))

    def _answer(self, response: requests.Response) -> dict:
        answer = _json(response)
        if response.status_code == 200:
            return answer
        error = answer.get("error") or {}
        match error.get("code"):
            case 190:
                raise LinkBroken(self.title)
            case 506:
                raise Duplicate
            case 4 | 17 | 32:
                raise _busy(response)
        if response.status_code == 429:
            raise _busy(response)
        if error.get("is_transient"):
            raise Away(f"Facebook says: {error}")
        raise Refused(f"Facebook says: {error.get('message') or response.status_code}")


NETWORKS: dict[str, Network] = {"facebook": Facebook(), "twitter": Twitter()}


def offered() -> dict[str, Network]:
    """The services that this installation has keys for."""
    return {name: network for name, network in NETWORKS.items() if network.is_offered()}


def _request(method: str, url: str, **options) -> requests.Response:
    """Raises Away, also for a redirect: what we send is for nobody else."""
    try:
        response = requests.request(method, url, timeout=TIMEOUTS, allow_redirects=False, **options)
    except requests.RequestException as error:
        raise Away(f"{method} {url}: {type(error).__name__}") from None  # whose text may have a secret in it
    if response.status_code >= 500 or response.status_code < 200 or response.is_redirect:
        raise Away(f"{method} {url}: {response.status_code}")
    return response


def _json(response: requests.Response):
    try:
        return response.json()
    except ValueError:
        raise Away(f"{response.status_code} without JSON") from None


def _busy(response: requests.Response) -> Busy:
    """By the headers that say when to come again, if they do."""
    after, reset = (response.headers.get(name, "") for name in ("Retry-After", "X-Rate-Limit-Reset"))
    if after.isdecimal():
        seconds = int(after)
    else:
        seconds = int(reset) - int(time.time()) if reset.isdecimal() else RATE_LIMIT_SECONDS
    return Busy(min(max(seconds, 1), LONGEST_WAIT))


def _same(given: str, kept: str) -> bool:
    return hmac.compare_digest(given.encode(), kept.encode())
