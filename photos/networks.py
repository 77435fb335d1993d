"""Twitter and Facebook: what sharing needs of them, and what their errors mean. See docs/sharing.md.

Their base URLs and our keys there are settings. Credentials, {token, secret}, travel in headers and bodies alone, never
in a URL, and so in no log and no error.
"""

import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl, urlencode

import requests
from django.conf import settings
from requests_oauthlib import OAuth1
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

# Seconds to connect, and to wait for bytes of an answer. Two requests fit into a page's 15 s (nginx) and a job's 20.
TIMEOUTS = (2, 5)
LONGEST_ANSWER = 1 << 22  # bytes; 200 tweets with all that is said of them may be a million
RATE_LIMIT_SECONDS = 15 * 60  # Twitter's window; unless a service says when to come again
LONGEST_WAIT = 3600
# Of 2011. Today's 280 count the characters of some scripts twice, so what has 140 fits there, too.
LONGEST_TWEET = 140
# Of the latest posts, as many as a page has there: more than anybody posts between two tries.
TWEETS_LOOKED_THROUGH, POSTS_LOOKED_THROUGH = 200, 100
FRIENDS_A_PAGE = 5000
LONGEST_ID, LONGEST_NAME = 50, 100  # as the columns are for them


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


class Slow(Away):
    """No answer in time, or half of one: what was asked for may be done some time from now."""


class WrongSignature(Away):
    """Twitter's word for our keys, this machine's clock, or a secret that is not the token's: one user's, or all."""


class Account(NamedTuple):
    """An account at a service, and what opens it."""

    username: str
    token: str
    secret: str | None


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


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


def _understood(ask: Callable) -> Callable:
    """Away instead of what an answer of another shape than `ask` expects raises in it."""

    @wraps(ask)
    def asked(*args):
        try:
            return ask(*args)
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise Away(f"an answer that we do not understand: {error!r}") from error

    return asked


class Twitter:
    """OAuth 1.0a and the API 1.1."""

    title = "Twitter"

    def is_offered(self) -> bool:
        return bool(settings.TWITTER_KEY)

    @_understood
    def begin(self, callback: str) -> tuple[str, dict[str, str]]:
        token = self._tokens("request_token", callback_uri=callback)
        url = f"{settings.TWITTER_URL}/oauth/authorize?{urlencode({'oauth_token': token['oauth_token']})}"
        return url, {"token": token["oauth_token"], "secret": token["oauth_token_secret"]}

    @_understood
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
        return Account(opened["screen_name"][:LONGEST_NAME], opened["oauth_token"], opened["oauth_token_secret"])

    @_understood
    def post(self, credentials: dict, caption: str, link: str) -> str:
        room = LONGEST_TWEET - len(link) - 1
        caption = " ".join(caption.split())
        if len(caption) > room:
            caption = f"{caption[: room - 1]}…"
        return _id(self._ask("POST", "statuses/update", credentials, {"status": f"{caption} {link}".strip()})["id_str"])

    @_understood
    def find(self, credentials: dict, link: str) -> str | None:
        # The text has a short URL of Twitter's instead.
        for tweet in self._ask("GET", "statuses/user_timeline", credentials, {"count": TWEETS_LOOKED_THROUGH}):
            if any(url["expanded_url"] == link for url in tweet["entities"]["urls"]):
                return _id(tweet["id_str"])
        return None

    @_understood
    def me(self, credentials: dict) -> str:
        return _id(self._ask("GET", "account/verify_credentials", credentials, {})["id_str"])

    @_understood
    def friends(self, credentials: dict, cursor: str) -> tuple[list[str], str]:
        # Followers: whoever the user follows may be anybody, and has not asked to hear of the user.
        params = {"cursor": cursor or "-1", "count": FRIENDS_A_PAGE, "stringify_ids": "true"}
        page = self._ask("GET", "followers/ids", credentials, params)
        return [_id(one) for one in page["ids"]], page["next_cursor_str"].removeprefix("0")

    def _ask(self, method: str, path: str, credentials: dict, params: dict):
        auth = OAuth1(settings.TWITTER_KEY, settings.TWITTER_SECRET, credentials["token"], credentials["secret"])
        where = {"data" if method == "POST" else "params": params}
        response = _request(method, f"{settings.TWITTER_URL}/1.1/{path}.json", auth=auth, **where)
        answer = json.loads(response.body)
        if response.status == 200:
            return answer
        error = (answer.get("errors") or [{}])[0]
        match response.status, error.get("code"):
            case 401, 89:
                raise LinkBroken(self.title)
            case 403, 187:
                raise Duplicate
            case _, 88 | 185:
                raise _busy(response.headers)
            case 401, _:
                raise WrongSignature(f"Twitter does not know us: {error}")
        raise Refused(f"Twitter says: {error.get('message') or response.status}")

    def _tokens(self, path: str, **signed: str) -> dict[str, str]:
        auth = OAuth1(settings.TWITTER_KEY, settings.TWITTER_SECRET, **signed)
        response = _request("POST", f"{settings.TWITTER_URL}/oauth/{path}", auth=auth)
        if response.status != 200:
            raise Refused("Twitter did not let us in. Please begin anew.")
        return dict(parse_qsl(response.body.decode()))


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

    @_understood
    def finish(self, callback: str, kept: dict[str, str], answer: Mapping[str, str]) -> Account | None:
        if not _same(answer.get("state", ""), kept["state"]):
            raise Refused("This is not the answer that we were waiting for. Please begin anew.")
        if "error" in answer:
            return None
        client = {"client_id": settings.FACEBOOK_ID, "client_secret": settings.FACEBOOK_SECRET}
        given = {"redirect_uri": callback, "code": answer.get("code", "")}
        token = self._answer(_request("POST", f"{settings.FACEBOOK_URL}/oauth/access_token", data=client | given))
        credentials = {"token": token["access_token"], "secret": None}
        name = self._ask("GET", "me", credentials, {"fields": "name"})["name"]
        return Account(name[:LONGEST_NAME], **credentials)

    @_understood
    def post(self, credentials: dict, caption: str, link: str) -> str:
        return _id(self._ask("POST", "me/feed", credentials, {"message": caption, "link": link})["id"])

    @_understood
    def find(self, credentials: dict, link: str) -> str | None:
        # The user's own: in `me/feed` is what others have put there, too.
        asked = {"fields": "id,link", "limit": POSTS_LOOKED_THROUGH}
        posts = self._ask("GET", "me/posts", credentials, asked)["data"]
        return next((_id(post["id"]) for post in posts if post.get("link") == link), None)

    @_understood
    def me(self, credentials: dict) -> str:
        return _id(self._ask("GET", "me", credentials, {"fields": "id"})["id"])

    @_understood
    def friends(self, credentials: dict, cursor: str) -> tuple[list[str], str]:
        params = {"fields": "id", "limit": FRIENDS_A_PAGE} | ({"after": cursor} if cursor else {})
        page = self._ask("GET", "me/friends", credentials, params)
        paging = page.get("paging", {})
        return [_id(friend["id"]) for friend in page["data"]], paging["cursors"]["after"] if "next" in paging else ""

    def _ask(self, method: str, path: str, credentials: dict, params: dict):
        # That we have the app's secret: without it, a stolen token opens nothing.
        proof = hmac.digest(settings.FACEBOOK_SECRET.encode(), credentials["token"].encode(), "sha256").hex()
        where = {"data" if method == "POST" else "params": params | {"appsecret_proof": proof}}
        headers = {"Authorization": f"Bearer {credentials['token']}"}
        return self._answer(_request(method, f"{settings.FACEBOOK_URL}/{path}", headers=headers, **where))

    def _answer(self, response: Answer) -> dict:
        answer = json.loads(response.body)
        if response.status == 200:
            return answer
        error = answer.get("error") or {}
        match error.get("code"):
            case 190:
                raise LinkBroken(self.title)
            case 506:
                raise Duplicate
            case 4 | 17 | 32 | 341 | 613:
                raise _busy(response.headers)
        if error.get("is_transient"):
            raise Away(f"Facebook says: {error}")
        raise Refused(f"Facebook says: {error.get('message') or response.status}")


NETWORKS: dict[str, Network] = {"facebook": Facebook(), "twitter": Twitter()}


def offered() -> dict[str, Network]:
    """The services that this installation has keys for."""
    return {name: network for name, network in NETWORKS.items() if network.is_offered()}


def _request(method: str, url: str, **options) -> Answer:
    """Raises Busy; and Away, also for a redirect: what we send is for nobody else."""
    options |= {"allow_redirects": False, "stream": True}
    until = time.monotonic() + sum(TIMEOUTS)
    try:
        with requests.request(method, url, timeout=TIMEOUTS, **options) as response:
            answer = Answer(response.status_code, response.headers, _body(response, until))
    except (requests.RequestException, HTTPError) as error:
        reason = getattr(error.args[0] if error.args else None, "reason", None)
        kind = Away if isinstance(reason, ConnectTimeoutError | NewConnectionError) else Slow
        raise kind(f"{method} {url}: {type(error).__name__}") from None  # whose text may have a secret in it
    if answer.status == 429:
        raise _busy(answer.headers)
    if answer.status // 100 not in (2, 4):
        kind = Slow if answer.status == 504 else Away  # their own time-out
        raise kind(f"{method} {url}: {answer.status}")
    return answer


def _body(response: requests.Response, until: float) -> bytes:
    """What an answer says; no endless one, in size or time."""
    body = b""
    while part := response.raw.read1(1 << 16, decode_content=True):
        body += part
        if len(body) > LONGEST_ANSWER or time.monotonic() > until:
            raise HTTPError("too much, or too slow")
    return body


def _id(value: str) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_ID:
        raise TypeError("this is no ID")
    return value


def _busy(headers: Mapping[str, str]) -> Busy:
    """By the headers that say when to come again, if they do."""
    after, reset = headers.get("Retry-After", ""), headers.get("X-Rate-Limit-Reset", "")
    if after.isdecimal():
        seconds = int(after)
    else:
        seconds = int(reset) - int(time.time()) if reset.isdecimal() else RATE_LIMIT_SECONDS
    return Busy(min(max(seconds, 1), LONGEST_WAIT))


def _same(given: str, kept: str) -> bool:
    return hmac.compare_digest(given.encode(), kept.encode())
