"""How soon a photo is in a follower's feed once its publishing was answered, while RATE photos a second are published.

Through the edge, as phones do it: each is uploaded and published on time, however long the ones before it take, and one
of its owner's followers asks for the feed until it is there.
"""

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from bench.photo import call, picture, publish, sign_up

RATE = 10
PAIRS = 20  # somebody and a follower
SIZE = (612, 612)  # as the app of 2011 uploaded
# Asks again after so long, or after this share of the time waited: hardly a load.
POLL_SECONDS, POLL_SHARE = 0.1, 0.1
GIVE_UP_SECONDS = 60


def run(n: int = 300) -> dict[str, float]:
    pairs = [(sign_up(), sign_up()) for _ in range(PAIRS)]
    for person, follower in pairs:
        call("POST", f"users/{person['id']}/relationship", follower, action="follow")
        call("GET", "users/self/feed", follower)  # so that there is a feed to push into
    original = picture(SIZE)
    start = time.perf_counter() + 1
    with ThreadPoolExecutor(n) as phones:
        taken = [phones.submit(_take, start + number / RATE, original, *pairs[number % PAIRS]) for number in range(n)]
        times = sorted(1000 * one.result() for one in taken)
    seconds = time.perf_counter() - start
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {
        "photos": n,
        "photos/s": round(n / seconds, 1),
        "bytes a photo": len(original),
        "ms, p50": round(cuts[49]),
        "ms, p99": round(cuts[98]),
        "ms, slowest": round(times[-1]),
    }


def _take(at: float, original: bytes, person: dict[str, str], follower: dict[str, str]) -> float:
    """Publishes a photo at a time; returns the seconds from the answer until a follower's feed has it."""
    threading.Event().wait(max(0, at - time.perf_counter()))
    media = publish(original, person)
    answered = time.perf_counter()
    while media["id"] not in [shown["id"] for shown in call("GET", "users/self/feed?count=5", follower)]:
        waited = time.perf_counter() - answered
        if waited > GIVE_UP_SECONDS:
            raise TimeoutError(f"photo {media['id']} is in no feed after {GIVE_UP_SECONDS} s")
        threading.Event().wait(max(POLL_SECONDS, POLL_SHARE * waited))
    return time.perf_counter() - answered
