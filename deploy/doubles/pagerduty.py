"""A double of PagerDuty's Events API v2: checks what it gets as PagerDuty does, and keeps incidents until it ends.

    python pagerduty.py PORT SETTINGS

SETTINGS is the file of deploy/alerts/pagerduty. Events go to /v2/enqueue; / shows the incidents, /incidents has them
as JSON. (developer.pagerduty.com, "Send an Alert Event", "Event Management")
"""

import json
import re
import sys
import threading
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from werkzeug import Request, Response
from werkzeug.serving import run_simple

ACTIONS = ("trigger", "acknowledge", "resolve")
SEVERITIES = ("critical", "error", "warning", "info")
TEXTS = ("component", "group", "class")
FIELDS = {"routing_key", "event_action", "dedup_key", "payload", "client", "client_url", "links", "images"}
PAYLOAD_FIELDS = {"summary", "source", "severity", "timestamp", "custom_details", *TEXTS}


class Double:
    def __init__(self, routing_key: str) -> None:
        self.routing_key = routing_key
        self.incidents: list[dict] = []
        self.lock = threading.Lock()

    def __call__(self, environ, start_response) -> Iterable[bytes]:
        request = Request(environ)
        match request.method, request.path:
            case "POST", "/v2/enqueue":
                response = self.enqueue(request)
            case "GET", "/":
                response = self.page()
            case "GET", "/incidents":
                response = answer(200, self.incidents)
            case _:
                response = answer(404, {"message": "there is no such path"})
        return response(environ, start_response)

    def enqueue(self, request: Request) -> Response:
        event = request.get_json(force=True, silent=True)
        if errors := errors_of(event, self.routing_key):
            return answer(400, {"status": "invalid event", "message": "Event object is invalid", "errors": errors})
        key = event.get("dedup_key") or uuid.uuid4().hex
        with self.lock:
            self.take(key, event)
        return answer(202, {"status": "success", "message": "Event processed", "dedup_key": key})

    def take(self, key: str, event: dict) -> None:
        """As PagerDuty: one open incident a key; what acknowledges or resolves none is passed over."""
        action = event["event_action"]
        is_open = [one for one in self.incidents if one["dedup_key"] == key and one["status"] != "resolved"]
        if action == "trigger" and not is_open:
            is_open = [{"dedup_key": key, "status": "triggered", "log": []}]
            self.incidents += is_open
        for incident in is_open:
            incident["log"].append(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {action}")
            if action == "trigger":
                incident["payload"] = event["payload"]
            else:
                incident["status"] = action.removesuffix("e") + "ed"

    def page(self) -> Response:
        rows = "".join(
            f"<tr><td>{one['status']}<td>{one['payload']['severity']}<td>{escape(one['payload']['summary'])}"
            f"<td>{escape(one['dedup_key'])}<td>{'<br>'.join(one['log'])}"
            for one in reversed(self.incidents)
        )
        head = "<!doctype html><meta charset='utf-8'><title>PagerDuty</title>"
        style = "<style>body{font:16px sans-serif;margin:2em}td{border-top:1px solid #ccc;vertical-align:top}</style>"
        body = f"<h1>Incidents (a double of PagerDuty)</h1><table cellpadding=8>{rows}</table>"
        return Response(head + style + body, content_type="text/html; charset=utf-8")


def errors_of(event, routing_key: str) -> list[str]:
    """What PagerDuty would find wrong with an event."""
    if not isinstance(event, dict):
        return ["the body is no JSON object"]
    errors = [f"{name!r} is unknown" for name in event.keys() - FIELDS]
    if not re.fullmatch(r"\w{32}", str(event.get("routing_key"))) or event["routing_key"] != routing_key:
        errors.append("'routing_key' is missing or invalid")
    if event.get("event_action") not in ACTIONS:
        errors.append(f"'event_action' is none of {ACTIONS}")
    key = event.get("dedup_key", "")
    if not isinstance(key, str) or len(key) > 255:
        errors.append("'dedup_key' is no text of up to 255 characters")
    if event.get("event_action") == "trigger":
        errors += errors_of_payload(event.get("payload"))
    elif not key:
        errors.append("'dedup_key' is missing")
    return errors


def errors_of_payload(payload) -> list[str]:
    if not isinstance(payload, dict):
        return ["'payload' is missing"]
    errors = [f"'payload.{name}' is unknown" for name in payload.keys() - PAYLOAD_FIELDS]
    for name, longest in (("summary", 1024), ("source", 255)):
        text = payload.get(name)
        if not isinstance(text, str) or not 0 < len(text) <= longest:
            errors.append(f"'payload.{name}' is no text of up to {longest} characters")
    if payload.get("severity") not in SEVERITIES:
        errors.append(f"'payload.severity' is none of {SEVERITIES}")
    return errors + [f"'payload.{name}' is no text" for name in TEXTS if not isinstance(payload.get(name, ""), str)]


def answer(status: int, value) -> Response:
    return Response(json.dumps(value), status, content_type="application/json")


if __name__ == "__main__":
    settings = dict(line.split("=", 1) for line in Path(sys.argv[2]).read_text().splitlines())
    run_simple("127.0.0.1", int(sys.argv[1]), Double(settings["PAGERDUTY_ROUTING_KEY"]), threaded=True)
