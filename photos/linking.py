"""`/shares/`: the pages on which people link their accounts at other services to the one they are logged in with.

What has to be known when somebody comes back from the service is in the session, and good for one answer: so nobody
can be made to link an account that somebody else let us into. Nothing begins or ends without a form of ours.
"""

import threading
from collections.abc import Callable
from contextlib import suppress

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET

from accounts.errors import NotFound
from accounts.web import error_page
from photos import networks, sharing

HOME = "/shares/"

# A request that asks a service holds a thread of the app server for as long as the service takes its time.
_asking = threading.BoundedSemaphore(4)


@require_GET
@login_required
def accounts(request: HttpRequest) -> HttpResponse:
    """The services that are offered, and the user's accounts there."""
    linked = {account.service: account for account in sharing.linked(request.user.id)}
    services = [(name, network.title, linked.get(name)) for name, network in networks.offered().items()]
    return render(request, "photos/accounts.html", {"services": services})


def link(request: HttpRequest, service: str) -> HttpResponse:
    """From the form to the service, which asks the user whether to let us in."""
    network = _network(service)
    if not _is_from_form(request):
        return redirect(HOME)

    def begin() -> HttpResponse:
        url, request.session[f"shares/{service}"] = network.begin(_callback(service))
        # No redirect: browsers hold those that follow a form, and those that the service adds, to our policy for forms.
        return render(request, "photos/on_to_service.html", {"title": network.title, "url": url})

    return _asked(request, begin)


@require_GET
@login_required
def linked(request: HttpRequest, service: str) -> HttpResponse:
    """Back from the service."""
    network = _network(service)
    kept = request.session.pop(f"shares/{service}", None)

    def finish() -> HttpResponse:
        if kept is None:
            raise networks.Refused("This answer was used already, or comes late. Please begin anew.")
        account = network.finish(_callback(service), kept, request.GET)
        if account is not None:  # else the user said no
            sharing.link(request.user.id, service, *account)
        return redirect(HOME)

    return _asked(request, finish)


def unlink(request: HttpRequest, service: str) -> HttpResponse:
    """Forgets the user's account at a service."""
    _network(service)
    if _is_from_form(request):
        with suppress(NotFound):  # done already, in another tab
            sharing.unlink(request.user.id, service)
    return redirect(HOME)


def _is_from_form(request: HttpRequest) -> bool:
    """Whether this may change something; else the page with the forms comes, after the login if need be."""
    return request.method == "POST" and request.user.is_authenticated


def _asked(request: HttpRequest, ask: Callable[[], HttpResponse]) -> HttpResponse:
    """What `ask`, which asks a service, returns; or a page with what it raises."""
    if not _asking.acquire(blocking=False):
        return _later(request)
    try:
        return ask()
    except networks.Refused as error:
        return error_page(request, 400, "That did not work", str(error))
    except (networks.Away, networks.Busy):
        return _later(request)
    finally:
        _asking.release()


def _later(request: HttpRequest) -> HttpResponse:
    return error_page(request, 503, "We do not reach them right now", "Please try again in some minutes.")


def _network(service: str) -> networks.Network:
    try:
        return networks.offered()[service]
    except KeyError:
        raise Http404 from None


def _callback(service: str) -> str:
    return f"{settings.SITE_URL}/shares/{service}/callback"
