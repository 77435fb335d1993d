"""OAuth 2 by django-oauth-toolkit: our rules for it, its JSON endpoints, and the verbs about clients ("apps").

The pages on which people meet it (consent, their apps, a developer's clients) are in accounts/pages.py.
"""

import datetime
import json
import re
from collections.abc import Iterable
from typing import Literal, NotRequired

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest
from oauth2_provider.exceptions import OAuthToolkitError
from oauth2_provider.generators import generate_client_secret
from oauth2_provider.models import AccessToken, Application, Grant
from oauth2_provider.oauth2_backends import OAuthLibCore
from oauth2_provider.oauth2_validators import OAuth2Validator
from oauth2_provider.views import RevokeTokenView, TokenView
from oauth2_provider.views.mixins import OAuthLibMixin
from oauthlib.oauth2 import InvalidRequestError
from typing_extensions import TypedDict

from accounts.errors import InvalidClient, InvalidParameters, InvalidToken
from accounts.models import SigningClient, User
from accounts.schemas import Login, short_user
from accounts.services import users
from accounts.tokens import PHONE, viewer_of

# Which flows a client may use. A developer's client has the code flow, and the implicit one if the developer asks for
# it: one client with both, as on Instagram, where django-oauth-toolkit would want two.
CODE, IMPLICIT = Application.GRANT_AUTHORIZATION_CODE, Application.GRANT_IMPLICIT
RESPONSE_TYPES = {"code": (CODE, IMPLICIT), "token": (IMPLICIT,)}

# What `POST /oauth/access_token` needs beside `client_id`.
GRANT_TYPES = {"authorization_code": ("code",), "password": ("username", "password")}

NO_SUCH_CODE = "No matching code found: it is wrong, used or expired, or its code_verifier does not fit."
WRONG_LOGIN = "The username or the password is wrong."

CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")  # SHA-256 in base64url

LONGEST_REDIRECT_URI = 500
MOST_REDIRECT_URIS = 10
# django-oauth-toolkit's own check takes "https://example.com@evil.com/", as its expression has no end.
REDIRECT_URI = re.compile(
    r"""
    (?: https://[a-z0-9-]+(?:\.[a-z0-9-]+)* (?: :[0-9]{1,5} )?           # a web server,
      | http://(?:localhost|127\.0\.0\.1|\[::1\]) (?: :[0-9]{1,5} )?    # a developer's own machine,
      | [a-z][a-z0-9+-]*(?:\.[a-z0-9+-]+)+: (?= / )                     # or an app's own scheme (RFC 8252)
    )
    (?: [/?] [A-Za-z0-9._~:/?@!$&'()*+,;=%-]* )?
    """,
    re.VERBOSE,
)


class Validator(OAuth2Validator):
    """django-oauth-toolkit's rules, made ours."""

    def get_default_scopes(self, client_id, request, *args, **kwargs) -> list[str]:
        """The phone app gets all scopes unless it asks for fewer."""
        if client_id == PHONE:
            return list(settings.OAUTH2_PROVIDER["SCOPES"])
        return super().get_default_scopes(client_id, request, *args, **kwargs)

    def validate_scopes(self, client_id, scopes, client, request, *args, **kwargs) -> bool:
        """Refuses unknown scopes. "basic" is part of every token, as it was on Instagram."""
        # Without the empty ones, of `scope=` and of two blanks.
        asked = list(filter(None, scopes)) or self.get_default_scopes(client_id, request)
        request.scopes = [scope for scope in settings.OAUTH2_PROVIDER["SCOPES"] if scope in {"basic", *asked}]
        return super().validate_scopes(client_id, asked, client, request, *args, **kwargs)

    def validate_redirect_uri(self, client_id, redirect_uri, request, *args, **kwargs) -> bool:
        """Equal to a registered one, character for character."""
        return redirect_uri in request.client.redirect_uris.split()

    def validate_response_type(self, client_id, response_type, client, request, *args, **kwargs) -> bool:
        return client.authorization_grant_type in RESPONSE_TYPES.get(response_type, ())

    def validate_grant_type(self, client_id, grant_type, client, request, *args, **kwargs) -> bool:
        """The password grant is the phone app's alone, and that is all the phone app has."""
        if grant_type == "password":
            return client.client_id == PHONE
        return grant_type == "authorization_code" and client.authorization_grant_type in (CODE, IMPLICIT)

    def is_pkce_required(self, client_id, request) -> bool:
        return request.client.client_type == Application.CLIENT_PUBLIC

    def client_authentication_required(self, request, *args, **kwargs) -> bool:
        """A public client has no secret, whatever it sends as one (python-instagram sends "None")."""
        client = self._load_application(request.client_id, request)
        if client is not None and client.client_type == Application.CLIENT_PUBLIC:
            return False
        return super().client_authentication_required(request, *args, **kwargs)

    def validate_code(self, client_id, code, client, request, *args, **kwargs) -> bool:
        """Called in the transaction of `access_token`: of two requests with one code, the second waits and finds none.

        Refuses a `code_verifier` where no challenge was made: somebody took the challenge out on the way (RFC 9700,
        section 4.8.2).
        """
        grant = Grant.objects.select_for_update().filter(code=code, application=client).first()
        if grant is None or (request.code_verifier and not grant.code_challenge):
            return False
        return super().validate_code(client_id, code, client, request, *args, **kwargs)

    def save_authorization_code(self, client_id, code, request, *args, **kwargs) -> None:
        # OpenID's and RFC 8707's parameters, which we do not offer: not from the URL into the database.
        request.nonce, request.claims, request.resource = "", {}, []
        super().save_authorization_code(client_id, code, request, *args, **kwargs)

    def _save_bearer_token(self, token, request, *args, **kwargs) -> None:
        token.pop("refresh_token", None)  # our tokens end by revocation: nothing is there to refresh
        request.resource = []
        super()._save_bearer_token(token, request, *args, **kwargs)


class UrlAlone(OAuthLibCore):
    """Django's requests as oauthlib wants them, but for the fields of a form."""

    def extract_body(self, request: HttpRequest) -> list:
        return []


class AuthorizationEndpoint(OAuthLibMixin):
    """The protocol behind `/oauth/authorize`. Its parameters are those of the URL, also when the form is sent."""

    oauthlib_backend_class = UrlAlone

    def validate(self, request: HttpRequest) -> tuple[list[str], dict]:
        """What is asked for: the scopes, and `credentials` as django-oauth-toolkit has them.

        Raises OAuthToolkitError, or its subclass FatalClientError if the answer must not go to the client.
        """
        scopes, credentials = self.validate_authorization_request(request)
        challenge = credentials.get("code_challenge")
        if challenge is not None and not (
            credentials["code_challenge_method"] == "S256" and CHALLENGE.fullmatch(challenge)
        ):
            description = "code_challenge: must be a SHA-256 in base64url, with code_challenge_method S256"
            raise OAuthToolkitError(InvalidRequestError(description, request=credentials["request"]))
        return scopes, credentials

    def answer(self, request: HttpRequest, scopes: list[str], credentials: dict, *, allow: bool) -> str:
        """The URI to send the user to, with a code or a token in it. Raises as `validate` does, also if not `allow`."""
        uri, *_ = self.create_authorization_response(request, " ".join(scopes), credentials, allow)
        return uri


class TokenForm(TypedDict):
    """What `access_token` takes; a client may as well say its ID and secret by HTTP Basic."""

    grant_type: Literal["authorization_code", "password"]
    client_id: NotRequired[str]
    client_secret: NotRequired[str]
    code: NotRequired[str]
    redirect_uri: NotRequired[str]
    code_verifier: NotRequired[str]
    username: NotRequired[str]
    password: NotRequired[str]
    scope: NotRequired[str]


def access_token(request: HttpRequest) -> Login:
    """A token for a code, or, for the phone app alone, for a username and a password (xAuth)."""
    form = request.POST
    if form.get("grant_type") not in GRANT_TYPES:
        raise InvalidParameters('grant_type: must be "authorization_code" or "password"')
    needed = GRANT_TYPES[form["grant_type"]]
    if "Authorization" not in request.headers:  # where HTTP Basic has the client's ID and secret
        needed = ("client_id", *needed)
    for name in needed:
        if not form.get(name):
            raise InvalidParameters(f"{name}: missing")
    if "\0" in form.get("code", ""):  # which Postgres refuses to look for
        raise InvalidToken(NO_SUCH_CODE)
    if form["grant_type"] == "password":  # checking a password takes long: no transaction meanwhile
        _, _, body, status = TokenView().create_token_response(request)
    else:
        with transaction.atomic():
            _, _, body, status = TokenView().create_token_response(request)
    answer = json.loads(body)
    if status != 200:
        raise _as_service_error(answer, form["grant_type"])
    user_id = viewer_of(answer["access_token"]).user_id
    return {"access_token": answer["access_token"], "user": short_user(users([user_id])[user_id], bio=True)}


class RevocationForm(TypedDict):
    """What `revoke` takes."""

    token: str
    client_id: NotRequired[str]
    client_secret: NotRequired[str]


def revoke(request: HttpRequest) -> None:
    """Ends a token (RFC 7009). One that is unknown is as good as ended."""
    _, _, body, status = RevokeTokenView().create_revocation_response(request)
    if status != 200:
        raise _as_service_error(json.loads(body))


def authorized_apps(user: User) -> list[dict]:
    """The clients that can act for a user: [{"client": Application, "scopes": [description, …], "since": datetime}]."""
    apps = {}
    now = datetime.datetime.now(datetime.UTC)
    tokens = AccessToken.objects.filter(user=user, expires__gt=now).exclude(application=None)
    for token in tokens.select_related("application").order_by("created"):
        app = apps.setdefault(
            token.application_id, {"client": token.application, "names": set(), "since": token.created}
        )
        app["names"].update(token.scope.split())
    return [{"client": app["client"], "scopes": describe(app["names"]), "since": app["since"]} for app in apps.values()]


def remove_app(user: User, client_id: str) -> None:
    """Ends all tokens of a client for a user, at once, and the codes that could become one."""
    with transaction.atomic():
        # The codes first: whoever is turning one into a token holds its row, and is done after this.
        Grant.objects.filter(user=user, application__client_id=client_id).delete()
        AccessToken.objects.filter(user=user, application__client_id=client_id).delete()


def describe(scopes: Iterable[str]) -> list[str]:
    """What scopes allow, in words."""
    return [words for scope, words in settings.OAUTH2_PROVIDER["SCOPES"].items() if scope in scopes]


def check_redirect_uris(text: str) -> list[str]:
    """Redirect URIs, one a line. Raises InvalidParameters, which says what is wrong with which of them."""
    uris = list(dict.fromkeys(text.split()))
    if not 1 <= len(uris) <= MOST_REDIRECT_URIS:
        raise InvalidParameters(f"redirect_uris: give 1 to {MOST_REDIRECT_URIS}, one a line")
    for uri in uris:
        if len(uri) > LONGEST_REDIRECT_URI:
            raise InvalidParameters(f"redirect_uris: {uri[:40]}… is longer than {LONGEST_REDIRECT_URI} characters")
        if not REDIRECT_URI.fullmatch(uri):
            raise InvalidParameters(
                f"redirect_uris: {uri} must be https://…, http:// on localhost, or have a scheme of the app's own "
                "with a dot in it, like com.example.app:/callback; no user, no fragment"
            )
    return uris


def implicit_clients(user: User, redirect_uri: str) -> list[Application]:
    """A developer's clients that may have a token sent to this URI by the implicit flow."""
    clients = Application.objects.filter(user=user, authorization_grant_type=IMPLICIT).order_by("created")
    return [client for client in clients if redirect_uri in client.redirect_uris.split()]


def register_client(user: User, name: str, redirect_uris: list[str], *, public: bool, implicit: bool) -> Application:
    """A new client of a developer's."""
    return Application.objects.create(
        user=user,
        name=name,
        redirect_uris="\n".join(redirect_uris),
        client_type=Application.CLIENT_PUBLIC if public else Application.CLIENT_CONFIDENTIAL,
        authorization_grant_type=IMPLICIT if implicit else CODE,
        # As it is: requests and real-time updates are signed with it. A public client has one that nobody is shown,
        # so that an empty secret never is the right one.
        hash_client_secret=False,
    )


def edit_client(
    client: Application, name: str, redirect_uris: list[str], *, implicit: bool, must_sign: bool = False
) -> None:
    """Changes a client. `must_sign` means that its requests need a signature; a public one has nothing to sign with."""
    client.name, client.redirect_uris = name, "\n".join(redirect_uris)
    client.authorization_grant_type = IMPLICIT if implicit else CODE
    with transaction.atomic():
        client.save(update_fields=["name", "redirect_uris", "authorization_grant_type", "updated"])
        if must_sign and client.client_type == Application.CLIENT_CONFIDENTIAL:
            SigningClient.objects.get_or_create(client=client)
        else:
            SigningClient.objects.filter(client=client).delete()


def rotate_secret(client: Application) -> None:
    """A new secret; the old one stops working at once. Tokens stay."""
    client.client_secret = generate_client_secret()
    client.save(update_fields=["client_secret", "updated"])


def _as_service_error(answer: dict, grant_type: str = "") -> Exception:
    reason = answer.get("error_description") or answer["error"]
    if answer["error"] in ("invalid_client", "unauthorized_client"):
        return InvalidClient("client_id: unknown, with a wrong client_secret, or not allowed to do this")
    if answer["error"] == "invalid_grant":
        return InvalidToken(NO_SUCH_CODE if grant_type == "authorization_code" else WRONG_LOGIN)
    return InvalidParameters(f"{answer['error']}: {reason}")
