"""A developer: a client of the API, and a server that its real-time updates are sent to."""

import hashlib
import hmac
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import requests
from django.conf import settings
from oauth2_provider.models import Application

from notifications.models import Callback, Geography, Object, Subscription
from tests.accounts.test_oauth import Browser, Client
from tests.support import Person, Refused

SUBSCRIPTIONS = f"{settings.SITE_URL}/v1/subscriptions"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        params = dict(parse_qsl(urlsplit(self.path).query))
        self.server.owner.challenges.append(params)
        self.server.owner.answer(self, params)

    def do_POST(self):
        developer = self.server.owner
        body = self.rfile.read(int(self.headers["Content-Length"]))
        developer.arrived.append(body)
        developer.look(json.loads(body))
        developer.open.wait(4)
        status = developer.statuses.pop(0) if developer.statuses else 200
        if status == 200:
            developer.accepted.append((self.path, self.headers, body))
        reply(self, b"", status)

    def log_message(self, *args):
        pass


def reply(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def agree(handler: BaseHTTPRequestHandler, params: dict) -> None:
    reply(handler, params["hub.challenge"].encode())


class Developer:
    """`statuses` are the answers to the next POSTs (200 after them); those wait while `open` is not set."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.secret = client.secret
        self.challenges: list[dict] = []
        self.arrived: list[bytes] = []
        self.accepted: list[tuple] = []
        self.statuses: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.answer: Callable[[BaseHTTPRequestHandler, dict], None] = agree
        self.look: Callable[[list[dict]], None] = lambda updates: None  # at what has arrived, before it is answered
        self.port = 0
        self.start()

    def start(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.server.owner = self
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def url(self, path: str = "/callback") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def call(self, method: str, **params) -> requests.Response:
        """A request as python-instagram makes it: a form for POST, else a query."""
        params = {"client_id": self.client.id, "client_secret": self.secret, **params}
        place = {"data" if method == "POST" else "params": params}
        return requests.request(method, SUBSCRIPTIONS, timeout=20, **place)

    def subscribe(self, object: str, **params) -> dict:
        params = {"aspect": "media", "callback_url": self.url(), "verify_token": "mine", **params}
        return data(self.call("POST", object=object, **params))

    def subscriptions(self) -> list[dict]:
        return data(self.call("GET"))

    def unsubscribe(self, **params) -> None:
        data(self.call("DELETE", **params))

    def allowed_by(self, person: Person) -> str:
        """The person authorizes the client; the access token."""
        return self.client.token_of(Browser(person))

    def told(self, subscription: dict | None = None) -> list[dict]:
        """The updates that were accepted, of one subscription if given; each was signed."""
        updates = []
        for _, headers, body in self.accepted:
            assert headers["Content-Type"] == "application/json"
            # As SubscriptionsReactor of python-instagram does it.
            assert headers["X-Hub-Signature"] == hmac.new(self.secret.encode(), body, hashlib.sha1).hexdigest()
            updates += json.loads(body)
        return [one for one in updates if subscription is None or one["subscription_id"] == subscription["id"]]

    def told_of(self, subscription: dict) -> list[str]:
        """The media that one subscription was told of."""
        return [one["data"]["media_id"] for one in self.told(subscription)]


def geography_at(latitude: str, longitude: str) -> int:
    """A geography that no callback had to agree to. What is published there later is told to nobody who listens."""
    client = Application.objects.get(client_id="phone")
    callback, _ = Callback.objects.get_or_create(client=client, url="http://127.0.0.1:65535/")
    subscription = Subscription.objects.create(callback=callback, object=Object.GEOGRAPHY)
    where = {"latitude": float(latitude), "longitude": float(longitude)}
    return Geography.objects.create(subscription=subscription, radius=1000, **where).pk


def data(response: requests.Response):
    if response.status_code != 200:
        raise Refused(response)
    return response.json()["data"]
