"""What browsers ask of any site by themselves, and what they get where there is nothing."""

from django.http import HttpRequest, HttpResponse
from django.utils.cache import patch_vary_headers

from accounts import web
from instagram.api import dispatch

# Permalinks are for all the world to find; the rest are forms, and the API.
ROBOTS = """\
User-agent: *
Disallow: /v1/
Disallow: /oauth/
Disallow: /accounts/
Disallow: /shares/
Disallow: /developer/clients/
"""


def not_found(request: HttpRequest, exception=None) -> HttpResponse:
    """For a path that there is not: the API's envelope, or a page if that is liked better and it is no path of the API.

    Clients that accept everything alike, or say nothing, get the envelope.
    """
    liked = request.get_preferred_type(["application/json", "text/html"])
    if liked == "text/html" and not request.path.startswith(("/v1", "/oauth/")):
        response = web.not_found(request)
    else:
        response = dispatch.not_found(request)
    patch_vary_headers(response, ["Accept"])
    return response


def robots(request: HttpRequest) -> HttpResponse:
    return HttpResponse(ROBOTS, content_type="text/plain")


def no_icon(request: HttpRequest) -> HttpResponse:
    """We have none; the browser needs not ask again today."""
    return HttpResponse(status=204, headers={"Cache-Control": "public, max-age=86400"})
