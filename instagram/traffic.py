"""What the app answers, counted for Munin: how often, how fast, and with which status."""

from django.http import HttpRequest, HttpResponse

from shardmap.metrics import Histogram, labelled

# Steps of about a third: a percentile read from them is as exact.
SECONDS = (
    *(0.001, 0.0015, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10),
)
_requests = labelled(Histogram("requests", "Requests, and their seconds", ["endpoint", "status"], buckets=SECONDS))


def note(request: HttpRequest, response: HttpResponse, seconds: float) -> None:
    """Counts an answer: as "GET v1/users/self/feed" those of the API, and all others together."""
    match = request.resolver_match
    route = getattr(match.func, "route", None) if match else None
    endpoint = f"{request.method} {route.path}" if route and request.method in route.endpoints else "other"
    _requests(endpoint, f"{response.status_code // 100}xx").observe(seconds)
