"""python-instagram 1.3.2 as its users used it, every method: a script that test_python_instagram.py runs.

`import instagram` is the client here, not our own package of that name. What there is to look at comes as JSON on the
standard input. Ends with an AssertionError at what is not as it should be, and if a method was left out.
"""

import inspect
import json
import queue
import sys
import threading
import time
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from instagram.bind import InstagramAPIError, InstagramClientError

from instagram import client, oauth2, subscriptions

WORLD = json.load(sys.stdin)


def methods_of(*classes: type) -> set[str]:
    return {
        name
        for one in classes
        for name, value in vars(one).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


METHODS = methods_of(client.InstagramAPI, oauth2.OAuth2API, subscriptions.SubscriptionsReactor)
called: set[str] = set()


class Noted:
    """Notes which methods were called."""

    def __getattribute__(self, name: str):
        if name in METHODS:
            called.add(name)
        return super().__getattribute__(name)


class InstagramAPI(Noted, client.InstagramAPI):
    """Host and protocol, and nothing else."""

    host = WORLD["host"]
    protocol = "http"
    authorize_url = f"http://{host}/oauth/authorize"
    access_token_url = f"http://{host}/oauth/access_token"


class SubscriptionsReactor(Noted, subscriptions.SubscriptionsReactor):
    pass


class Callback(BaseHTTPRequestHandler):
    """A developer's callback: agrees to be one, and puts what comes, (body, X-Hub-Signature), into a queue."""

    arrived: queue.Queue[tuple[str, str]] = queue.Queue()

    def do_GET(self):
        asked = parse_qs(urlsplit(self.path).query)
        assert asked["hub.mode"] == ["subscribe"]
        assert asked["hub.verify_token"] == ["mine"]
        self.answer(asked["hub.challenge"][0])

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.arrived.put((body.decode(), self.headers["X-Hub-Signature"]))
        self.answer("")

    def answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


def eventually(condition, seconds: float = 15):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {inspect.getsource(condition)}"
        threading.Event().wait(0.05)
    return result


def refusal(expected: type[Exception], call, *args, **kwargs) -> Exception:
    try:
        result = call(*args, **kwargs)
    except expected as error:
        return error
    raise AssertionError(f"{expected.__name__} was to be raised; returned {result}")


def ids(found: list) -> list[str]:
    return [one.id for one in found]


def walked(method, **kwargs) -> list[str]:
    """The IDs of all pages, by the client's generator."""
    pages = [ids(page) for page, _ in method(as_generator=True, max_pages=None, **kwargs)]
    assert all(pages)
    return [one for page in pages for one in page]


class Somebody:
    def __init__(self, known: dict) -> None:
        self.id, self.username, self.token = known["id"], known["username"], known["token"]
        self.api = InstagramAPI(access_token=self.token)


def users(me: Somebody, friend: Somebody, nobody: InstagramAPI) -> None:
    for shown in (me.api.user(), me.api.user(me.id), me.api.user(user_id=me.id), nobody.user(me.id)):
        assert (shown.id, shown.username, shown.full_name) == (me.id, me.username, "Somebody")
        assert shown.profile_picture.startswith("http")
        assert (shown.bio, shown.website) == ("", "")
        assert set(shown.counts) == {"media", "follows", "followed_by"}
    found = me.api.user_search(q=friend.username)
    assert [(one.id, one.username) for one in found] == [(friend.id, friend.username)]
    assert ids(me.api.user_search(friend.username, 1)) == [friend.id]  # in the order of its parameters
    remaining = int(me.api.x_ratelimit_remaining)
    me.api.user()
    assert (int(me.api.x_ratelimit_remaining), me.api.x_ratelimit) == (remaining - 1, "5000")


def relationships(me: Somebody, friend: Somebody, private: Somebody) -> None:
    followed, _ = me.api.follow_user(user_id=friend.id)
    assert (followed.outgoing_status, followed.target_user_is_private) == ("follows", False)
    assert ids(me.api.user_follows()[0]) == [friend.id]
    eventually(lambda: ids(friend.api.user_followed_by()[0]) == [me.id])
    assert friend.api.user_relationship(user_id=me.id).incoming_status == "followed_by"
    unfollowed, _ = me.api.unfollow_user(user_id=friend.id)
    assert unfollowed.outgoing_status == "none"
    assert me.api.user_follows() == ([], None)
    again, _ = me.api.change_user_relationship(user_id=friend.id, action="follow")
    assert again.outgoing_status == "follows"

    for answer, then in (("ignore", "none"), ("approve", "followed_by")):
        asked, _ = me.api.follow_user(user_id=private.id)
        assert (asked.outgoing_status, asked.target_user_is_private) == ("requested", True)
        eventually(lambda: ids(private.api.user_incoming_requests()) == [me.id])
        getattr(private.api, f"{answer}_user_request")(user_id=me.id)
        eventually(lambda: private.api.user_incoming_requests() == [])
        assert private.api.user_relationship(user_id=me.id).incoming_status == then

    blocked, _ = private.api.block_user(user_id=friend.id)
    assert blocked.incoming_status == "blocked_by_you"
    assert refusal(InstagramAPIError, friend.api.user, private.id).error_type == "APINotAllowedError"
    unblocked, _ = private.api.unblock_user(user_id=friend.id)
    assert unblocked.incoming_status == "none"
    assert friend.api.user(private.id).id == private.id


def photos(me: Somebody, friend: Somebody, nobody: InstagramAPI) -> None:
    newest_first = WORLD["photos"]
    photo_id = newest_first[0]
    code = WORLD["shortcode"]
    shown_in = (me.api.media(photo_id), nobody.media(media_id=photo_id), me.api.media_shortcode(code))
    for photo in shown_in:
        assert (photo.id, photo.type, photo.filter) == (photo_id, "image", "Normal")
        assert (photo.user.id, photo.user.username) == (friend.id, friend.username)
        assert (photo.caption.text, photo.caption.user.id) == (WORLD["caption"], friend.id)
        assert [tag.name for tag in photo.tags] == [WORLD["tag"]]
        assert (photo.location.id, photo.location.name) == (WORLD["place"]["id"], WORLD["place"]["name"])
        assert abs((datetime.utcnow() - photo.created_time).total_seconds()) < 600
        assert photo.link == f"http://{WORLD['host']}/p/{code}/"
        assert (photo.like_count, photo.likes, photo.comment_count, photo.comments) == (0, [], 0, [])
        assert (photo.user_has_liked, photo.users_in_photo) == (False, [])
        sizes = {name: (image.width, image.height) for name, image in photo.images.items()}
        assert sizes == {
            "thumbnail": (150, 150),
            "low_resolution": (306, 306),
            "standard_resolution": (612, 612),
        }
        assert photo.get_standard_resolution_url() == photo.images["standard_resolution"].url
        assert photo.get_low_resolution_url() != photo.get_thumbnail_url()

    assert walked(me.api.user_recent_media, user_id=friend.id, count=2) == newest_first
    # MEDIA_ACCEPT_PARAMETERS, in the order of the client.
    assert ids(me.api.user_recent_media(3, newest_first[0], friend.id)[0]) == newest_first[1:4]
    page, next_url = me.api.user_recent_media(user_id=friend.id, count=2)
    rest, _ = me.api.user_recent_media(with_next_url=next_url)
    assert ids(page) + ids(rest) == newest_first[:4]
    _, pagination = me.api.user_recent_media(user_id=friend.id, count=2, pagination_format="dict")
    assert pagination == {"next_max_id": newest_first[1], "next_url": next_url}
    as_json, _ = me.api.user_recent_media(user_id=friend.id, count=1, return_json=True)
    assert as_json[0]["id"] == photo_id
    assert len(list(me.api.user_recent_media(user_id=friend.id, count=1, as_generator=True, max_pages=2))) == 2
    eventually(lambda: walked(me.api.user_media_feed, count=2) == newest_first)


def likes_and_comments(me: Somebody, friend: Somebody, nobody: InstagramAPI) -> None:
    liked = WORLD["photos"][:3]
    for photo_id in liked:
        assert me.api.like_media(photo_id) == []  # `response_type="empty"`
        assert friend.api.like_media(media_id=photo_id) == []
    shown = me.api.media(liked[0])
    assert (shown.like_count, shown.user_has_liked) == (2, True)
    assert ids(shown.likes) == ids(nobody.media_likes(liked[0])) == [friend.id, me.id]
    assert walked(me.api.user_liked_media, count=2) == liked[::-1]
    eventually(lambda: liked[0] in ids(nobody.media_popular(count=100)))
    me.api.unlike_media(liked[0])
    assert ids(me.api.media_likes(media_id=liked[0])) == [friend.id]
    assert walked(me.api.user_liked_media, count=1) == liked[:0:-1]

    assert me.api.create_media_comment(media_id=liked[0], text="naïve & ★=1") == []
    friend.api.create_media_comment(liked[0], "thanks")
    said = nobody.media_comments(liked[0])
    assert [(one.text, one.user.id) for one in said] == [("naïve & ★=1", me.id), ("thanks", friend.id)]
    assert abs((datetime.utcnow() - said[0].created_at).total_seconds()) < 600
    assert ids(me.api.media(liked[0]).comments) == ids(said)
    me.api.delete_comment(media_id=liked[0], comment_id=said[0].id)
    assert ids(me.api.media_comments(liked[0])) == [said[1].id]


def tags_and_places(api: InstagramAPI) -> None:
    tag, place, photos = WORLD["tag"], WORLD["place"], WORLD["photos"]
    found = api.tag(tag)
    assert (found.name, found.media_count) == (tag, len(photos))
    names, next_url = api.tag_search(q=tag[:-1])
    assert ([one.name for one in names], next_url) == ([tag], None)
    assert walked(api.tag_recent_media, tag_name=tag, count=2) == photos
    _, pagination = api.tag_recent_media(2, tag_name=tag, pagination_format="dict")
    rest, _ = api.tag_recent_media(tag_name=tag, max_tag_id=pagination["next_max_tag_id"])
    assert ids(rest) == photos[2:]

    lat, lng = place["latitude"], place["longitude"]
    shown = api.location(place["id"])
    assert (shown.id, shown.name) == (place["id"], place["name"])
    assert (shown.point.latitude, shown.point.longitude) == (lat, lng)
    assert place["id"] in ids(api.location_search(lat=lat, lng=lng))
    assert ids(api.location_search(foursquare_v2_id=WORLD["foursquare"])) == [place["id"]]
    assert walked(api.location_recent_media, location_id=place["id"], count=2) == photos
    now = int(time.time())
    assert ids(api.media_search(lat=lat, lng=lng, distance=500, count=2)) == photos[:2]
    assert ids(api.media_search(lat=lat, lng=lng, min_timestamp=now - 600, max_timestamp=now)) == photos
    assert api.media_search(lat=lat, lng=lng, min_timestamp=now + 600) == []


def errors(me: Somebody) -> None:
    wrong = InstagramAPI(access_token="wrong")
    unknown = refusal(InstagramAPIError, wrong.user)
    assert (unknown.status_code, unknown.error_type) == (400, "OAuthAccessTokenException")
    assert str(unknown) == f"(400) OAuthAccessTokenException-{unknown.error_message}"
    # Without either credential it asks for "…/self.jsonNone".
    missing = refusal(InstagramAPIError, InstagramAPI().user)
    assert (missing.status_code, missing.error_type) == (400, "OAuthParameterException")
    assert refusal(InstagramAPIError, me.api.media, "1_1").error_type == "APINotFoundError"
    invalid = refusal(InstagramAPIError, me.api.user_recent_media, count="many")
    assert invalid.error_type == "APIInvalidParametersError"
    assert "count" in invalid.error_message
    reader = InstagramAPI(access_token=WORLD["reader_token"])
    unscoped = refusal(InstagramAPIError, reader.like_media, WORLD["photos"][0])
    assert (unscoped.status_code, unscoped.error_type) == (403, "OAuthPermissionsException")
    assert refusal(InstagramClientError, me.api.user, "1", "2").error_message == "Too many arguments supplied"
    no_json = refusal(InstagramClientError, me.api.user, callback="show")  # JSONP
    assert (no_json.status_code, no_json.error_message) == ("200", "Unable to parse response, not valid JSON.")
    tired = refusal(InstagramAPIError, InstagramAPI(access_token=WORLD["tired_token"]).user)
    assert (tired.status_code, tired.error_type) == ("429", "Rate limited")


def signed_requests(me: Somebody, friend: Somebody) -> None:
    """A client that must sign. The client does so whenever it has a secret."""
    app, token = WORLD["signing"], WORLD["signing_token"]
    unsigned = InstagramAPI(access_token=token)
    missing = refusal(InstagramAPIError, unsigned.user)
    assert (missing.status_code, missing.error_type) == (403, "OAuthForbiddenException")
    wrong = InstagramAPI(access_token=token, client_secret="wrong")
    assert "does not match" in refusal(InstagramAPIError, wrong.user).error_message
    api = InstagramAPI(access_token=token, client_secret=app["secret"])
    assert api.user().id == me.id
    assert ids(api.user_search(q=friend.username, count=3)) == [friend.id]
    assert walked(api.user_recent_media, user_id=friend.id, count=2) == WORLD["photos"]
    assert api.follow_user(user_id=friend.id)[0].outgoing_status == "follows"
    photo_id = WORLD["photos"][3]
    api.like_media(photo_id)
    api.create_media_comment(media_id=photo_id, text="signed & sealed")
    said = api.media_comments(photo_id)
    assert [one.text for one in said] == ["signed & sealed"]
    api.delete_comment(media_id=photo_id, comment_id=said[0].id)
    api.unlike_media(photo_id)
    shown = api.media(photo_id)
    assert (shown.like_count, shown.comment_count) == (0, 0)
    nobody = InstagramAPI(client_id=app["id"], client_secret=app["secret"])
    assert nobody.user(friend.id).id == friend.id
    assert walked(nobody.tag_recent_media, tag_name=WORLD["tag"], count=2) == WORLD["photos"]
    # bind.py, line 127: `hmac.new(secret, ips, sha256)` with text. X-Insta-Forwarded-For never leaves Python 3.
    with_ips = InstagramAPI(access_token=token, client_secret=app["secret"], client_ips="192.0.2.1")
    refusal(TypeError, with_ips.like_media, photo_id)
    assert with_ips.user().id == me.id


def real_time(friend: Somebody) -> None:
    """Subscribing, and an update's way from a new tag to the reactor's callback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Callback)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    app, photo_id = WORLD["app"], WORLD["photos"][0]
    api = InstagramAPI(client_id=app["id"], client_secret=app["secret"])
    to_us = {
        "aspect": "media",
        "callback_url": f"http://127.0.0.1:{server.server_port}/",
        "verify_token": "mine",
    }
    tag = f"{WORLD['tag']}2"
    place = {"lat": WORLD["place"]["latitude"], "lng": WORLD["place"]["longitude"]}
    of_tag = api.create_subscription(object="tag", object_id=tag, **to_us)["data"]
    of_circle = api.create_subscription(object="geography", radius=1000, **place, **to_us)["data"]
    assert (of_tag["object"], of_tag["object_id"], of_tag["aspect"]) == ("tag", tag, "media")
    assert api.list_subscriptions()["data"] == [of_tag, of_circle]
    assert walked(api.geography_recent_media, geography_id=of_circle["object_id"], count=2) == WORLD["photos"]

    friend.api.create_media_comment(photo_id, f"also #{tag}")
    body, signature = Callback.arrived.get(timeout=20)
    reactor, updates = SubscriptionsReactor(), []
    reactor.register_callback(subscriptions.SubscriptionType.TAG, updates.append)
    for secret, told in (("wrong", body), (app["secret"], body + " ")):
        refusal(subscriptions.SubscriptionVerifyError, reactor.process, secret, told, signature)
    assert updates == []
    reactor.process(app["secret"], body, signature)
    assert [(one["subscription_id"], one["object"], one["object_id"]) for one in updates] == [
        (of_tag["id"], "tag", tag)
    ]
    assert updates[0]["changed_aspect"] == "media"
    assert abs(updates[0]["time"] - time.time()) < 60
    assert ids(api.tag_recent_media(tag_name=tag)[0]) == [photo_id]
    reactor.deregister_callback(subscriptions.SubscriptionType.TAG, updates.append)
    reactor.process(app["secret"], body, signature)
    assert len(updates) == 1

    api.delete_subscriptions(id=of_tag["id"])
    assert api.list_subscriptions()["data"] == [of_circle]
    api.delete_subscriptions(object="all")
    assert api.list_subscriptions()["data"] == []
    wrong = InstagramAPI(client_id=app["id"], client_secret="wrong")
    assert refusal(InstagramAPIError, wrong.list_subscriptions).error_type == "OAuthParameterException"
    server.shutdown()


def oauth(me: Somebody) -> None:
    app = WORLD["app"]
    api = InstagramAPI(client_id=app["id"], client_secret=app["secret"], redirect_uri=app["redirect_uri"])
    asked = urlsplit(api.get_authorize_url(scope=["likes", "comments"]))
    assert f"{asked.scheme}://{asked.netloc}{asked.path}" == f"http://{WORLD['host']}/oauth/authorize"
    assert parse_qs(asked.query)["scope"] == ["likes comments"]
    login = urlsplit(api.get_authorize_login_url(scope=["likes", "comments"]))
    assert login.path == "/accounts/login/"
    assert asked.query in parse_qs(login.query)["next"][0]

    token, user = api.exchange_code_for_access_token(WORLD["code"])
    assert (user["id"], user["username"]) == (me.id, me.username)
    assert set(user) == {"id", "username", "full_name", "profile_picture", "bio", "website"}
    assert InstagramAPI(access_token=token).user().id == me.id
    used = refusal(oauth2.OAuth2AuthExchangeError, api.exchange_code_for_access_token, WORLD["code"])
    assert "No matching code found" in used.description
    # It sends no code, but `user_id`: a token without asking the user, which Instagram once gave to partners.
    impossible = refusal(oauth2.OAuth2AuthExchangeError, api.exchange_user_id_for_access_token, me.id)
    assert "code" in impossible.description

    phone = InstagramAPI(client_id="phone")
    exchange = phone.exchange_xauth_login_for_access_token
    token, user = exchange(me.username, WORLD["password"], scope=["likes"])
    assert user["id"] == InstagramAPI(access_token=token).user().id == me.id
    assert "password" in refusal(oauth2.OAuth2AuthExchangeError, exchange, me.username, "wrong").description
    refusal(oauth2.OAuth2AuthExchangeError, api.exchange_xauth_login_for_access_token, me.username, WORLD["password"])


def main() -> None:
    me, friend, private = (Somebody(WORLD[name]) for name in ("me", "friend", "private"))
    nobody = InstagramAPI(client_id=WORLD["app"]["id"])
    oauth(me)  # first: the code expires in a minute
    users(me, friend, nobody)
    relationships(me, friend, private)
    photos(me, friend, nobody)
    likes_and_comments(me, friend, nobody)
    for api in (me.api, nobody):
        tags_and_places(api)
    errors(me)
    signed_requests(me, friend)
    real_time(friend)
    assert not METHODS - called, f"never called: {sorted(METHODS - called)}"


main()
