"""The form of every answer: `{"meta": …, "data": …, "pagination": …}`, never an HTML page."""

import json
import re

from django.http import HttpRequest, HttpResponse

CALLBACK = re.compile(r"[A-Za-z_$][\w$.]{0,63}", re.ASCII)


def answer(request: HttpRequest, code: int, body: dict) -> HttpResponse:
    """JSON, or JSONP when a GET names a `callback`."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    callback = request.GET.get("callback")
    if callback and request.method == "GET" and CALLBACK.fullmatch(callback):
        # The comment keeps a browser from taking the callback's name for the beginning of a Flash file.
        text = f"/**/{callback}({text});"
        response = HttpResponse(text, status=code, content_type="application/javascript; charset=utf-8")
    else:
        response = HttpResponse(text, status=code, content_type="application/json; charset=utf-8")
    response["X-Content-Type-Options"] = "nosniff"
    return response


def success(request: HttpRequest, data, pagination: dict | None = None) -> HttpResponse:
    body = {"meta": {"code": 200}, "data": data}
    if pagination is not None:
        body["pagination"] = pagination
    return answer(request, 200, body)


def error(request: HttpRequest, code: int, error_type: str, message: str) -> HttpResponse:
    meta = {"code": code, "error_type": error_type, "error_message": message}
    return answer(request, code, {"meta": meta})
