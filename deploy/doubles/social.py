"""A double of Twitter and of Facebook, as much of them as sharing needs (docs/sharing.md).

    python social.py PORT ENV_FILE

It checks OAuth 1.0a signatures, with oauthlib, and the steps of OAuth 2; the keys are those of the stack's env file.
Whoever gives a name in its login page has an account of that name: IDs, tokens and secrets are computed from it. What
was posted, and how it is told to answer (`/_told`), it keeps until it ends. At / it shows what was posted.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from html import escape
from pathlib import Path
from urllib.parse import urlencode

from oauthlib.oauth1 import RequestValidator, SignatureOnlyEndpoint
from werkzeug import Request, Response
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.serving import run_simple
from werkzeug.utils import redirect

PAGE = 2  # friends a page, so that paging is tried
HANGS = 12  # seconds of silence; who asks shall not wait for so long
LIMIT_SECONDS = 5
CLOCK_SECONDS = 300

URLS = Map(
    [
        Rule("/", endpoint="page", methods=["GET"]),
        Rule("/_account", endpoint="account", methods=["GET"]),
        Rule("/_posts", endpoint="posts_of", methods=["GET"]),
        Rule("/_told", endpoint="told", methods=["POST"]),
        Rule("/_friends", endpoint="befriend", methods=["POST"]),
        Rule("/twitter/oauth/request_token", endpoint="request_token", methods=["POST"]),
        Rule("/twitter/oauth/authorize", endpoint="twitter_login", methods=["GET", "POST"]),
        Rule("/twitter/oauth/access_token", endpoint="access_token", methods=["POST"]),
        Rule("/twitter/1.1/statuses/update.json", endpoint="tweet", methods=["POST"]),
        Rule("/twitter/1.1/statuses/user_timeline.json", endpoint="timeline", methods=["GET"]),
        Rule("/twitter/1.1/account/verify_credentials.json", endpoint="verify", methods=["GET"]),
        Rule("/twitter/1.1/followers/ids.json", endpoint="followers", methods=["GET"]),
        Rule("/facebook/dialog/oauth", endpoint="facebook_login", methods=["GET", "POST"]),
        Rule("/facebook/oauth/access_token", endpoint="exchange", methods=["POST"]),
        Rule("/facebook/me", endpoint="me", methods=["GET"]),
        Rule("/facebook/me/friends", endpoint="my_friends", methods=["GET"]),
        Rule("/facebook/me/feed", endpoint="feed", methods=["POST"]),
        Rule("/facebook/me/posts", endpoint="posts_by_me", methods=["GET"]),
    ]
)

# How either answers what it does not do: status, code and words.
TWITTERS = {
    "signature": (401, 32, "Could not authenticate you."),
    "expired": (401, 89, "Invalid or expired token."),
    "duplicate": (403, 187, "Status is a duplicate."),
    "limit": (429, 88, "Rate limit exceeded"),
    "daily limit": (403, 185, "User is over daily status update limit"),
    "refuse": (403, 64, "Your account is suspended and is not permitted to access this feature."),
    "error": (500, 131, "Internal error"),
    "odd": (200, 0, "No answer to that"),
}
FACEBOOKS = {
    "code": (400, 100, "This authorization code has been used."),
    "proof": (400, 100, "Invalid appsecret_proof provided in the API argument"),
    "expired": (400, 190, "Error validating access token: The session has expired."),
    "duplicate": (400, 506, "Duplicate status message"),
    "limit": (400, 17, "User request limit reached"),
    "daily limit": (400, 341, "Application limit reached"),
    "refuse": (403, 200, "Permissions error"),
    "error": (500, 1, "An unknown error occurred"),
    "odd": (200, 0, "No answer to that"),
}


class Refusal(Exception):
    """Leads to one of the errors above."""


class Validator(RequestValidator):
    """What oauthlib needs to check signatures."""

    enforce_ssl = False
    client_key_length = nonce_length = (1, 100)
    dummy_client = "nobody"

    def __init__(self, key: str, secret: str) -> None:
        super().__init__()
        self.key, self.secret = key, secret
        self.nonces: set[tuple[str, str]] = set()

    def validate_client_key(self, client_key, request) -> bool:
        return client_key == self.key

    def get_client_secret(self, client_key, request) -> str:
        return self.secret if client_key == self.key else ""

    def get_access_token_secret(self, client_key, token, request) -> str:
        return self.secret_of(token)

    def validate_timestamp_and_nonce(self, client_key, timestamp, nonce, request, *tokens) -> bool:
        is_new = (timestamp, nonce) not in self.nonces
        self.nonces.add((timestamp, nonce))
        return is_new and abs(time.time() - int(timestamp)) < CLOCK_SECONDS

    def secret_of(self, token: str) -> str:
        return hmac.digest(self.secret.encode(), token.encode(), "sha1").hex()


class Double:
    def __init__(self, settings: dict[str, str]) -> None:
        self.settings = settings
        self.validator = Validator(settings["TWITTER_KEY"], settings["TWITTER_SECRET"])
        self.posts: list[dict] = []
        self.post_requests: Counter[tuple[str, str]] = Counter()  # the refused ones, too
        self.answers: dict[tuple[str, str, str], deque[str]] = defaultdict(deque)
        self.friends: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.begun: dict[str, dict] = {}  # request tokens, and codes
        self.lock = threading.Lock()

    def __call__(self, environ, start_response) -> Iterable[bytes]:
        request = Request(environ)
        try:
            endpoint, _ = URLS.bind_to_environ(environ).match()
            response = getattr(self, endpoint)(request)
        except HTTPException as error:
            response = error.get_response(environ)
        except Refusal as refusal:
            response = _refused(request, str(refusal))
        return response(environ, start_response)

    # What tests and people ask

    def page(self, request: Request) -> Response:
        rows = "".join(
            f"<tr><td>{post['service']}<td>{escape(post['username'])}<td>{escape(post['text'])}"
            f'<td><a href="{escape(post["link"])}">{escape(post["link"])}</a>'
            for post in reversed(self.posts)
        )
        return _html(f"<h1>Posted at Twitter and Facebook</h1><table cellpadding=8>{rows}</table>")

    def account(self, request: Request) -> Response:
        username = request.args["username"]
        if request.args["service"] == "twitter":
            token = f"{_id_of(username)}-{username}"
            return _json({"id": _id_of(username), "token": token, "secret": self.validator.secret_of(token)})
        return _json({"id": _id_of(username), "token": self._facebook_token(username)})

    def posts_of(self, request: Request) -> Response:
        who = request.args["service"], request.args["username"]
        posts = [post for post in self.posts if (post["service"], post["username"]) == who]
        return _json({"posts": posts, "requests": self.post_requests[who]})

    def told(self, request: Request) -> Response:
        """{service, username, to, answers}: how to answer the next requests to "post", "find", "me" or "friends"."""
        said = request.get_json()
        self.answers[said["service"], said["username"], said["to"]].extend(said["answers"])
        return _json({})

    def befriend(self, request: Request) -> Response:
        """{service, username, friends: [username…]}; at Twitter, those who follow."""
        said = request.get_json()
        self.friends[said["service"], said["username"]] = said["friends"]
        return _json({})

    # Twitter

    def request_token(self, request: Request) -> Response:
        signed = self._signed(request)
        token = secrets.token_hex(12)
        self.begun[token] = {"callback": signed.redirect_uri}
        opened = {"oauth_token": token, "oauth_token_secret": self.validator.secret_of(token)}
        return Response(urlencode(opened | {"oauth_callback_confirmed": "true"}))

    def twitter_login(self, request: Request) -> Response:
        token = request.values.get("oauth_token", "")
        begun = self.begun[token]
        if request.method == "GET":
            return _login("Twitter", request)
        if "deny" in request.form:
            return redirect(f"{begun['callback']}?{urlencode({'denied': token})}")
        begun |= {"username": request.form["username"], "verifier": secrets.token_hex(12)}
        answer = {"oauth_token": token, "oauth_verifier": begun["verifier"]}
        return redirect(f"{begun['callback']}?{urlencode(answer)}")

    def access_token(self, request: Request) -> Response:
        signed = self._signed(request)
        begun = self.begun.pop(signed.resource_owner_key, {})
        if "verifier" not in begun or signed.verifier != begun["verifier"]:
            raise Refusal("signature")
        token = f"{_id_of(begun['username'])}-{begun['username']}"
        opened = {"oauth_token": token, "oauth_token_secret": self.validator.secret_of(token)}
        return Response(urlencode(opened | {"user_id": _id_of(begun["username"]), "screen_name": begun["username"]}))

    def tweet(self, request: Request) -> Response:
        username = self._twitter_user(request)
        text = request.form["status"]
        (link,) = re.findall(r"https?://\S+", text) or [""]
        if len(text) > 280 or not text:
            raise Refusal("refuse")
        return _json(self._tweet(self._post("twitter", username, text, link)))

    def timeline(self, request: Request) -> Response:
        found = self._found("twitter", self._twitter_user(request))
        return _json([self._tweet(post) for post in found[: int(request.args["count"])]])

    def verify(self, request: Request) -> Response:
        username = self._twitter_user(request)
        self._do_as_told("twitter", username, "me")
        return _json({"id_str": _id_of(username), "screen_name": username})

    def followers(self, request: Request) -> Response:
        username, start = self._twitter_user(request), max(0, int(request.args["cursor"]))
        ids, following = self._friends_from("twitter", username, start)
        return _json({"ids": ids, "next_cursor_str": str(following)})

    def _tweet(self, post: dict) -> dict:
        short = f"https://t.co/{post['id'][-10:]}"
        urls = [{"url": short, "expanded_url": post["link"]}] if post["link"] else []
        text = post["text"].replace(post["link"], short) if post["link"] else post["text"]
        return {"id_str": post["id"], "text": text, "entities": {"urls": urls}}

    def _signed(self, request: Request):
        url = f"http://{request.host}{request.environ['REQUEST_URI']}"
        body = request.get_data(as_text=True)
        is_valid, signed = SignatureOnlyEndpoint(self.validator).validate_request(
            url, request.method, body, dict(request.headers)
        )
        if not is_valid:
            raise Refusal("signature" if signed and self._is_known(signed.resource_owner_key) else "expired")
        return signed

    def _is_known(self, token: str | None) -> bool:
        number, _, username = (token or "").partition("-")
        return token is None or token in self.begun or number == _id_of(username)

    def _twitter_user(self, request: Request) -> str:
        return self._signed(request).resource_owner_key.partition("-")[2]

    # Facebook

    def facebook_login(self, request: Request) -> Response:
        asked = request.values
        if asked.get("client_id") != self.settings["FACEBOOK_ID"]:
            return _html("<h1>There is no such app</h1>", 400)
        if request.method == "GET":
            return _login("Facebook", request)
        if "deny" in request.form:
            answer = {"error": "access_denied", "error_reason": "user_denied"}
        else:
            answer = {"code": secrets.token_hex(12)}
            self.begun[answer["code"]] = {
                "username": request.form["username"],
                "redirect_uri": asked["redirect_uri"],
            }
        return redirect(f"{asked['redirect_uri']}?{urlencode(answer | {'state': asked['state']})}")

    def exchange(self, request: Request) -> Response:
        given, begun = request.form, self.begun.pop(request.form["code"], {})
        client = self.settings["FACEBOOK_ID"], self.settings["FACEBOOK_SECRET"]
        if (given["client_id"], given["client_secret"]) != client or given["redirect_uri"] != begun.get("redirect_uri"):
            raise Refusal("code")
        token = self._facebook_token(begun["username"])
        return _json({"access_token": token, "token_type": "bearer", "expires_in": 60 * 24 * 3600})

    def me(self, request: Request) -> Response:
        username = self._facebook_user(request)
        self._do_as_told("facebook", username, "me")
        return _json({"id": _id_of(username), "name": username})

    def my_friends(self, request: Request) -> Response:
        username, start = self._facebook_user(request), int(request.args.get("after", 0))
        ids, following = self._friends_from("facebook", username, start)
        paging = {"cursors": {"after": str(following)}, "next": request.base_url} if following else {}
        return _json({"data": [{"id": number} for number in ids], "paging": paging})

    def feed(self, request: Request) -> Response:
        username = self._facebook_user(request)
        post = self._post("facebook", username, request.form["message"], request.form["link"])
        return _json({"id": f"{_id_of(username)}_{post['id']}"})

    def posts_by_me(self, request: Request) -> Response:
        username = self._facebook_user(request)
        found = self._found("facebook", username)[: int(request.args["limit"])]
        return _json({"data": [{"id": f"{_id_of(username)}_{post['id']}", "link": post["link"]} for post in found]})

    def _facebook_token(self, username: str) -> str:
        name = base64.urlsafe_b64encode(username.encode()).decode().rstrip("=")
        return f"EAA{name}.{hmac.digest(self.settings['FACEBOOK_SECRET'].encode(), name.encode(), 'sha1').hex()}"

    def _facebook_user(self, request: Request) -> str:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        name = token.removeprefix("EAA").partition(".")[0]
        try:
            username = base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
        except ValueError:
            raise Refusal("expired") from None
        if not hmac.compare_digest(self._facebook_token(username).encode(), token.encode()):
            raise Refusal("expired")
        proof = hmac.digest(self.settings["FACEBOOK_SECRET"].encode(), token.encode(), "sha256").hex()
        if request.values.get("appsecret_proof") != proof:
            raise Refusal("proof")
        return username

    # Both

    def _post(self, service: str, username: str, text: str, link: str) -> dict:
        """Posts, unless told otherwise: "lost" and "hang" lose the answer after the post; "slow" posts late."""
        with self.lock:
            self.post_requests[service, username] += 1
        told = self._told(service, username, "post")
        if told not in ("", "lost", "hang", "slow"):
            raise Refusal(told)
        if told == "slow":
            time.sleep(HANGS)
        with self.lock:
            latest = self._of(service, username)[:1]
            if latest and (latest[0]["text"], latest[0]["link"]) == (text, link):
                raise Refusal("duplicate")
            post = {"service": service, "username": username, "text": text, "link": link}
            post["id"] = str(time.time_ns())
            self.posts.append(post)
        if told == "hang":
            time.sleep(HANGS)
        if told:
            raise Refusal("error")
        return post

    def _found(self, service: str, username: str) -> list[dict]:
        self._do_as_told(service, username, "find")
        return self._of(service, username)

    def _of(self, service: str, username: str) -> list[dict]:
        """What an account has posted, the latest first."""
        return [post for post in reversed(self.posts) if (post["service"], post["username"]) == (service, username)]

    def _friends_from(self, service: str, username: str, start: int) -> tuple[list[str], int]:
        """A page of IDs, and where the next one begins, 0 if there is none."""
        self._do_as_told(service, username, "friends")
        friends, end = self.friends[service, username], start + PAGE
        return [_id_of(friend) for friend in friends[start:end]], end if end < len(friends) else 0

    def _do_as_told(self, *who: str) -> None:
        if told := self._told(*who):
            raise Refusal(told)

    def _told(self, *who: str) -> str:
        return self.answers[who].popleft() if self.answers[who] else ""


def _id_of(username: str) -> str:
    return str(int.from_bytes(hashlib.sha256(username.encode()).digest()[:5]))


def _refused(request: Request, kind: str) -> Response:
    if kind == "throttled":  # by what stands before the service
        return Response("Too Many Requests", 429, headers={"Retry-After": str(LIMIT_SECONDS)})
    is_twitter = request.path.startswith("/twitter/")
    status, code, message = (TWITTERS if is_twitter else FACEBOOKS)[kind]
    error = {"code": code, "message": message}
    response = _json({"errors": [error]} if is_twitter else {"error": error | {"type": "OAuthException"}}, status)
    if kind == "limit" and is_twitter:
        response.headers["X-Rate-Limit-Reset"] = str(int(time.time()) + LIMIT_SECONDS)
    elif kind == "limit":
        response.headers["Retry-After"] = str(LIMIT_SECONDS)
    return response


def _login(title: str, request: Request) -> Response:
    hidden = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">' for name, value in request.args.items()
    )
    return _html(
        f"<h1>{title} (a double)</h1><p>Instagram would like to post for you.<form method='post'>{hidden}"
        "<p><input name='username' value='somebody' pattern='[A-Za-z0-9_]{1,30}' required> <button>Allow</button>"
        " <button name='deny' value='yes'>Deny</button></form>"
    )


def _json(value, status: int = 200) -> Response:
    return Response(json.dumps(value), status, content_type="application/json")


def _html(body: str, status: int = 200) -> Response:
    head = "<!doctype html><meta charset='utf-8'><title>Twitter and Facebook</title>"
    style = "<style>body{font:16px sans-serif;margin:2em}td{border-top:1px solid #ccc}</style>"
    return Response(head + style + body, status, content_type="text/html; charset=utf-8")


if __name__ == "__main__":
    env = dict(line.split("=", 1) for line in Path(sys.argv[2]).read_text().splitlines())
    run_simple("127.0.0.1", int(sys.argv[1]), Double(env), threaded=True)
