"""What Sentry is told of a job that fails."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from django.conf import settings

from tests import bugsink
from tests.support import eventually
from tests.workers.pool import Run

SECRET = "what somebody wrote"
ID = 1234567890123456789


@pytest.fixture
def run():
    run = Run()
    yield run
    run.clean_up()


@pytest.fixture
def sentry():
    """Its address, and the envelopes that it got, each as text."""
    envelopes: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            envelopes.append(gzip.decompress(body).decode())
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://key@127.0.0.1:{server.server_port}/1", envelopes
        server.shutdown()


def test_a_job_that_fails_is_seen_with_its_name_and_ids_and_without_texts(run, sentry):
    dsn, envelopes = sentry
    run.pool("--processes", "1", SENTRY_DSN=dsn)
    run.enqueue("bad", range(ID, ID + 1), text=SECRET)
    envelope = eventually(lambda: next(iter(envelopes), None))
    event = json.loads(envelope.splitlines()[2])
    assert event["tags"]["job"] == f"{run.name}.bad"
    row = eventually(lambda: run.rows().exclude(last_error="").first())  # which is written after Sentry is told
    args = {"number": str(ID), "text": "str of 19"}
    assert event["contexts"]["job"] == {"row": f"{row._state.db}:{row.id}", "attempt": 1, "args": args}
    (error,) = event["exception"]["values"]
    assert error["type"] == "ValueError"
    assert error["stacktrace"]["frames"][-1]["function"] == "bad"
    assert SECRET in row.last_error
    assert SECRET not in envelope


def test_the_stacks_bugsink_has_it_too(run):
    run.pool("--processes", "1")
    run.enqueue("bad", range(1), text=SECRET)
    event = eventually(lambda: bugsink.event("job", f"{run.name}.bad"))
    assert event["release"] == settings.RELEASE
    assert event["tags"] == {"job": f"{run.name}.bad", "program": "worker"}
    assert event["transaction"] == f"{run.name}.bad"
    assert SECRET not in json.dumps(event)


def test_what_a_process_has_captured_is_sent_before_it_ends(run, sentry):
    dsn, envelopes = sentry
    run.pool("--processes", "1", "--max-jobs", "1", SENTRY_DSN=dsn)
    run.enqueue("bad", range(3), text=SECRET)

    def first_attempts() -> set[str]:  # the second ones begin a second later
        jobs = [json.loads(one.splitlines()[2])["contexts"]["job"] for one in envelopes]
        return {job["args"]["number"] for job in jobs if job["attempt"] == 1}

    eventually(lambda: first_attempts() == {*"012"}, 20)
