"""What gunicorn runs."""

import os
import time

import django
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "instagram.settings")
django.setup(set_prefix=False)

from instagram import traffic  # noqa: E402  (these need the settings)
from workers import request_id, sentry  # noqa: E402


class Handler(WSGIHandler):
    def get_response(self, request: HttpRequest) -> HttpResponse:
        """Each answer says how long it is: else gunicorn sends it in chunks, and nginx too, in more system calls."""
        began = time.perf_counter()
        request_id.begin(given=request.META.get("HTTP_X_REQUEST_ID", ""))
        response = super().get_response(request)
        traffic.note(request, response, time.perf_counter() - began)
        if not response.streaming and response.status_code not in (204, 304):
            response.headers.setdefault("Content-Length", str(len(response.content)))
        return response


sentry.start("web")
handler = Handler()


def application(environ, start_response):
    """Django, and then the rest of a body that nobody has read.

    Of that, gunicorn throws 64 kB away, and at more it closes the connection, which it has just promised to keep: the
    next request that nginx sends over it, whosever it is, would be a 503.
    """
    response = handler(environ, start_response)
    while environ["wsgi.input"].read(1 << 16):
        pass
    return response
