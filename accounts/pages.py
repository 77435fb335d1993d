"""The pages on which people log in, let apps act for them, take that back, and register apps of their own."""

from urllib.parse import urlsplit

from django import forms
from django.contrib import auth
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.debug import sensitive_post_parameters
from oauth2_provider.exceptions import FatalClientError, OAuthToolkitError
from oauth2_provider.http import OAuth2ResponseRedirect
from oauth2_provider.models import Application
from oauthlib.common import add_params_to_uri
from oauthlib.oauth2 import OAuth2Error

from accounts import oauth
from accounts.errors import InvalidParameters
from accounts.web import content_security_policy, show

HOME = "/accounts/manage_access/"
CLIENTS = "/developer/clients/"


@sensitive_post_parameters("password")
def log_in(request: HttpRequest) -> HttpResponse:
    """The login form; then on to the path in `next`. An unknown name costs as long as a wrong password."""
    next_path = _next(request)
    form = AuthenticationForm(request, request.POST if request.method == "POST" else None)
    if form.is_valid():
        auth.login(request, form.get_user())
        return redirect(next_path)
    return show(request, "login.html", form=form, next=next_path)


def log_out(request: HttpRequest) -> HttpResponse:
    next_path = _next(request)
    if request.method == "POST":
        auth.logout(request)
        return redirect(next_path)
    return show(request, "log_out.html", next=next_path)


def authorize(request: HttpRequest) -> HttpResponse:
    """`/oauth/authorize`: may this app act for you?

    An app learns of an error by a redirect only when the user is logged in (RFC 9700, section 4.11.2): else whoever
    registers a client could make links to us that lead, without a question asked, to any place.
    """
    try:
        scopes, credentials = ENDPOINT.validate(request)
    except (FatalClientError, ValueError) as error:
        return _refusal(request, error)
    except OAuthToolkitError as error:
        if not request.user.is_authenticated:
            return _refusal(request, error)
        return _tell_app(error.oauthlib_error, error.oauthlib_error.redirect_uri, error.oauthlib_error.response_type)
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path())
    redirect_uri = credentials["redirect_uri"]
    if request.method == "POST":
        try:
            answer = ENDPOINT.answer(request, scopes, credentials, allow="allow" in request.POST)
        except FatalClientError as error:
            return _refusal(request, error)
        except OAuthToolkitError as error:
            return _tell_app(error.oauthlib_error, redirect_uri, credentials["response_type"])
        return _send_to_app(answer)
    response = show(
        request,
        "authorize.html",
        client=credentials["request"].client,
        scopes=oauth.describe(scopes),
        target=urlsplit(redirect_uri).netloc or urlsplit(redirect_uri).scheme,
    )
    response["Content-Security-Policy"] = content_security_policy(form_target=redirect_uri)
    return response


ENDPOINT = oauth.AuthorizationEndpoint()


def _refusal(request: HttpRequest, error: Exception) -> HttpResponse:
    """An error of a client's that is shown to the user, since it may not be sent to the client."""
    reason = "The link is broken."
    if isinstance(error, OAuthToolkitError):
        reason = f"{error.oauthlib_error.error}: {error.oauthlib_error.description or 'no further words'}"
    return show(request, "refusal.html", 400, reason=reason)


def _tell_app(error: OAuth2Error, redirect_uri: str, response_type: str | None) -> HttpResponse:
    """Sends the user back with `error` and `state`: in the query, or in the fragment where a token would be."""
    return _send_to_app(add_params_to_uri(redirect_uri, error.twotuples, fragment=response_type == "token"))


def _send_to_app(uri: str) -> HttpResponse:
    return OAuth2ResponseRedirect(uri, [urlsplit(uri).scheme])  # a registered one: the scheme is the app's choice


@login_required
def manage_access(request: HttpRequest) -> HttpResponse:
    """The apps that can act for the user; a POST with `client_id` removes one."""
    if request.method == "POST":
        oauth.remove_app(request.user, request.POST.get("client_id", "").replace("\0", ""))
        return redirect(HOME)
    return show(request, "manage_access.html", apps=oauth.authorized_apps(request.user))


class EditForm(forms.Form):
    name = forms.CharField(max_length=60)
    redirect_uris = forms.CharField(widget=forms.Textarea, label="Redirect URIs")
    implicit = forms.BooleanField(required=False)

    def clean_redirect_uris(self) -> list[str]:
        try:
            return oauth.check_redirect_uris(self.cleaned_data["redirect_uris"])
        except InvalidParameters as error:
            raise forms.ValidationError(str(error).removeprefix("redirect_uris: ")) from None


class ClientForm(EditForm):
    must_sign = forms.BooleanField(required=False)


class RegistrationForm(EditForm):
    public = forms.TypedChoiceField(
        choices=[("0", "On a server of mine"), ("1", "On phones, computers or in browsers")],
        coerce=lambda value: value == "1",
    )


@login_required
def clients(request: HttpRequest) -> HttpResponse:
    """The developer's own clients."""
    own = Application.objects.filter(user=request.user).order_by("created")
    return show(request, "clients.html", clients=own)


@login_required
def register_client(request: HttpRequest) -> HttpResponse:
    form = RegistrationForm(request.POST if request.method == "POST" else None, initial={"public": "0"})
    if form.is_valid():
        client = oauth.register_client(request.user, **form.cleaned_data)
        return redirect(f"{CLIENTS}{client.client_id}/")
    return show(request, "register_client.html", form=form)


@login_required
def client(request: HttpRequest, client_id: str) -> HttpResponse:
    """A client of the developer's: its ID and secret, and a form to change it."""
    own = _own_client(request, client_id)
    now = {
        "name": own.name,
        "redirect_uris": own.redirect_uris,
        "implicit": own.authorization_grant_type == oauth.IMPLICIT,
        "must_sign": hasattr(own, "signing"),
    }
    form = ClientForm(request.POST if request.method == "POST" else None, initial=now)
    if form.is_valid():
        oauth.edit_client(own, **form.cleaned_data)
        return redirect(f"{CLIENTS}{client_id}/")
    return show(request, "client.html", client=own, form=form)


@login_required
def rotate_secret(request: HttpRequest, client_id: str) -> HttpResponse:
    own = _own_client(request, client_id)
    if request.method == "POST":
        oauth.rotate_secret(own)
        return redirect(f"{CLIENTS}{client_id}/")
    return show(request, "rotate_secret.html", client=own)


@login_required
def delete_client(request: HttpRequest, client_id: str) -> HttpResponse:
    own = _own_client(request, client_id)
    if request.method == "POST":
        own.delete()
        return redirect(CLIENTS)
    return show(request, "delete_client.html", client=own)


def _own_client(request: HttpRequest, client_id: str) -> Application:
    """Raises Http404 as well for another developer's client: nobody learns which exist."""
    own = Application.objects.filter(user=request.user, client_id=client_id).first()
    if own is None:
        raise Http404
    return own


def _next(request: HttpRequest) -> str:
    """Where `next` wants to go, if that is a path of ours."""
    path = request.POST.get("next") or request.GET.get("next", "")
    ours = path.startswith("/") and url_has_allowed_host_and_scheme(path, allowed_hosts=None)
    return path if ours else HOME
