"""The form of every answer: `{"meta": …, "data": …, "pagination": …}`, never an HTML page."""

import re

import orjson
from django.core.exceptions import SuspiciousOperation
from django.http import HttpRequest, HttpResponse

CALLBACK = re.compile(r"[A-Za-z_$][\w$.]{0,63}", re.ASCII)


def answer(request: HttpRequest, code: int, body: dict) -> HttpResponse:
    """JSON, or JSONP when a GET names a `callback`."""
    text = orjson.dumps(body)
    callback = _callback(request)
    if callback:
        # The comment keeps a browser from taking the callback's name for the beginning of a Flash file.
        text = b"/**/%s(%s);" % (callback.encode(), text)
        response = HttpResponse(text, status=code, content_type="application/javascript; charset=utf-8")
    else:
        response = HttpResponse(text, status=code, content_type="application/json; charset=utf-8")
    response["X-Content-Type-Options"] = "nosniff"
    return response


def _callback(request: HttpRequest) -> str | None:
    """The JavaScript function that a GET names, if it is a name. (Errors are answered too, also to a broken query.)"""
    try:
        callback = request.GET.get("callback", "")
    except (SuspiciousOperation, LookupError):
        return None
    return callback if request.method == "GET" and CALLBACK.fullmatch(callback) else None


def success(request: HttpRequest, data, pagination: dict | None = None) -> HttpResponse:
    body = {"meta": {"code": 200}, "data": data}
    if pagination is not None:
        body["pagination"] = pagination
    return answer(request, 200, body)


def bare(request: HttpRequest, data, pagination: dict | None = None) -> HttpResponse:
    """A success without an envelope, public, so that the scripts of any site may read it."""
    response = answer(request, 200, data)
    response["Access-Control-Allow-Origin"] = "*"
    return response


def error(request: HttpRequest, code: int, error_type: str, message: str) -> HttpResponse:
    meta = {"code": code, "error_type": error_type, "error_message": message}
    return answer(request, code, {"meta": meta})
