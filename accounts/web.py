"""What every page for people has: sessions, protection against forged forms, strict headers, errors that can be read.

The API has no middleware and pays for none of this: `page` puts Django's own around a page's view alone. Sessions are
in Redis, so that any app server can answer; a cookie holds nothing but a session's key. Pages that are the same for
everybody (`public_page`) have neither sessions nor forms.
"""

import base64
import hashlib
import logging
from collections.abc import Callable
from functools import cache, partial
from urllib.parse import urlsplit

from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.middleware.csrf import CsrfViewMiddleware
from django.shortcuts import render
from django.template.loader import render_to_string
from django.urls import re_path
from django.utils.decorators import decorator_from_middleware
from django.views.decorators.cache import cache_control
from django.views.decorators.http import conditional_page, require_safe

from shardmap import redis_client
from shardmap.shards import following_moves
from workers import sentry

logger = logging.getLogger(__name__)

View = Callable[..., HttpResponse]

MIDDLEWARE = (SessionMiddleware, AuthenticationMiddleware, CsrfViewMiddleware)  # the first is the outermost
# A server of ours is away; the same request may work in a moment.
AWAY = (OperationalError, InterfaceError, *redis_client.Unavailable)

HEADERS = {
    "Cache-Control": "no-store",  # secrets, and whose page it is
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # "no-referrer" would take the Origin from our own forms, which is checked
}


def page(path: str, view: View):
    """A URL pattern for a page, e.g. `"developer/clients/{client_id}"`, with and without a trailing slash."""
    return _pattern(path, _with_middleware(view, MIDDLEWARE))


def as_page(view: View, *more_middleware: type) -> View:
    """A view as `page` makes it, for URL patterns that others make (instagram/admin.py)."""
    return partial(_answer, view=_with_middleware(view, (*MIDDLEWARE, *more_middleware)))


def public_page(path: str, view: View):
    """A URL pattern for a page that is the same for everybody, as `page` otherwise.

    Browsers and proxies may keep it, but have to ask each time whether it still is as they have it (a 304 if so): what
    its owner has deleted or made private is gone at once.
    """
    return _pattern(path, conditional_page(cache_control(no_cache=True)(require_safe(view))))


def _with_middleware(view: View, middleware: tuple[type, ...]) -> View:
    for one in reversed(middleware):
        view = decorator_from_middleware(one)(view)
    return view


def _pattern(path: str, view: View):
    pattern = path.replace("{", "(?P<").replace("}", ">[^/]+?)")
    return re_path(rf"^{pattern}/?$", partial(_answer, view=view), name=path)


def not_found(request: HttpRequest) -> HttpResponse:
    """The page for a path that there is not."""

    def nothing(request: HttpRequest) -> HttpResponse:
        raise Http404

    return _answer(request, view=nothing)


def _answer(request: HttpRequest, *, view: View, **path_params: str) -> HttpResponse:
    """What a view answers, or an error page, with the headers of a page."""
    try:
        response = _unreadable(request) or following_moves(partial(view, request, **path_params))
    except Http404:
        response = error_page(request, 404, "There is no such page", "It may have been removed, or the link is wrong.")
    except PermissionDenied:
        response = error_page(request, 403, "That is not yours to do", "You may look, but not change it.")
    except (BadRequest, SuspiciousOperation):  # among them: logged out in another tab, meanwhile
        response = error_page(request, 400, "That did not work", "Please go back and try again.")
    except AWAY as error:
        logger.warning("%s %s: %s: %s", request.method, request.path, type(error).__name__, error)
        message = f"Please try again in a moment. ({sentry.capture_away(request, error, _user_id(request))})"
        response = error_page(request, 503, "We cannot do that right now", message)
        response["Retry-After"] = "1"
    except Exception as error:
        logger.exception("%s %s", request.method, request.path)
        event_id = sentry.capture_request(request, error, _user_id(request))
        message = f"It is our fault; we have been told, as {event_id}."
        response = error_page(request, 500, "Something went wrong here", message)
    for name, value in HEADERS.items():
        response.setdefault(name, value)
    if response.status_code != 304:  # the page that the browser has keeps the policy that came with it
        response.setdefault("Content-Security-Policy", content_security_policy())
    if request.method == "HEAD":
        response.content = b""
    return response


def _user_id(request: HttpRequest) -> int | None:
    # If Django has asked already: asking may be what fails.
    user = getattr(request, "_cached_user", None)
    return user and user.pk


def show(request: HttpRequest, template: str, status: int = 200, **context) -> HttpResponse:
    """A page made from a template of accounts/templates/accounts/."""
    return render(request, f"accounts/{template}", context, status=status)


def error_page(request: HttpRequest, status: int, title: str, message: str) -> HttpResponse:
    return show(request, "error.html", status, title=title, message=message)


def forged_form(request: HttpRequest, reason: str = "") -> HttpResponse:
    """What a form without a valid CSRF token gets (settings.CSRF_FAILURE_VIEW)."""
    message = (
        "You have logged in or out since this form was shown, or your browser takes no cookies. Go back and reload."
    )
    return error_page(request, 403, "Please send that form again", message)


def content_security_policy(form_target: str = "", *, style: str = "", script: str = "", images: str = "") -> str:
    """Nothing but our own style; no frames around; forms go to us, and from us on to `form_target` (a URI) at most.

    Browsers hold the redirect that answers a form to `form-action` too. A page may have a second `style` and a `script`
    (templates), of which the latter may talk to us alone, and `images` from below a URL.
    """
    form_action = "'self'"
    if form_target:
        target = urlsplit(form_target)
        form_action += f" {target.scheme}:" + (f"//{target.netloc}" if target.scheme in ("http", "https") else "")
    styles = " ".join(f"'sha256-{_sha256_of(template)}'" for template in ("accounts/style.css", style) if template)
    script_src = f"script-src 'sha256-{_sha256_of(script)}'; connect-src 'self'; " if script else ""
    img_src = f"img-src {images}; " if images else ""
    return (
        f"default-src 'none'; style-src {styles}; {script_src}{img_src}base-uri 'none'; "
        f"frame-ancestors 'none'; form-action {form_action}"
    )


@cache
def _sha256_of(template: str) -> str:
    return base64.b64encode(hashlib.sha256(render_to_string(template).encode()).digest()).decode()


def session_cache_key(key: str, prefix: str, version: int) -> str:
    """The name of a session in Redis (settings.CACHES): under its SHA-256, so that a dump of Redis opens no account."""
    return f"session:{hashlib.sha256(key.encode()).hexdigest()}"


def _unreadable(request: HttpRequest) -> HttpResponse | None:
    """An error page if the query or the form cannot be read, else None; what was read is kept with the request."""
    try:
        _ = request.GET, request.POST
    except (BadRequest, SuspiciousOperation, LookupError, MultiPartParserError, UnreadablePostError):
        return error_page(request, 400, "That did not work", "What your browser sent cannot be read.")
    return None
