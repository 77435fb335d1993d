"""`POST /oauth/access_token`, for now its password grant (xAuth), and revocation; by django-oauth-toolkit."""

import json

from django.conf import settings
from django.http import HttpRequest
from oauth2_provider.oauth2_validators import OAuth2Validator
from oauth2_provider.views import RevokeTokenView, TokenView

from accounts.errors import InvalidClient, InvalidParameters, InvalidToken
from accounts.schemas import short_user
from accounts.services import users
from accounts.tokens import PHONE, viewer_of


class Validator(OAuth2Validator):
    """django-oauth-toolkit's rules, and that the phone app gets all scopes unless it asks for fewer."""

    def get_default_scopes(self, client_id, request, *args, **kwargs) -> list[str]:
        if client_id == PHONE:
            return list(settings.OAUTH2_PROVIDER["SCOPES"])
        return super().get_default_scopes(client_id, request, *args, **kwargs)


def access_token(request: HttpRequest) -> dict:
    """A token for a username and a password: {"access_token", "user"}. Raises InvalidParameters or InvalidClient."""
    if request.POST.get("grant_type") != "password":
        raise InvalidParameters('grant_type: must be "password"')
    for name in ("client_id", "username", "password"):
        if not request.POST.get(name):
            raise InvalidParameters(f"{name}: missing")
    _, _, body, status = TokenView().create_token_response(request)
    answer = json.loads(body)
    if status != 200:
        raise _as_service_error(answer)
    user_id = viewer_of(answer["access_token"]).user_id
    return {"access_token": answer["access_token"], "user": short_user(users([user_id])[user_id], bio=True)}


def revoke(request: HttpRequest) -> None:
    """Ends a token (RFC 7009: `client_id`, `token`). A token that is unknown is as good as ended."""
    _, _, body, status = RevokeTokenView().create_revocation_response(request)
    if status != 200:
        raise _as_service_error(json.loads(body))


def _as_service_error(answer: dict) -> Exception:
    reason = answer.get("error_description") or answer["error"]
    if answer["error"] == "invalid_client":
        return InvalidClient("client_id: unknown, or not allowed to do this")
    if answer["error"] == "invalid_grant":
        return InvalidToken("The username or the password is wrong.")
    return InvalidParameters(f"{answer['error']}: {reason}")
