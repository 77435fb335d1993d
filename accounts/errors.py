"""What services raise when they refuse; the API's face turns it into an error envelope.

Messages are read by people who call the API: what happened, with which value, and what to do.
"""


class ServiceError(Exception):
    """An answer that is not the wished one. `error_type` and `code` as in the API's table of errors."""

    error_type = "APIError"
    code = 500


class InvalidParameters(ServiceError):
    """A parameter is missing, of the wrong type or out of range. The message begins with the parameter's name."""

    error_type = "APIInvalidParametersError"
    code = 400


class NotFound(ServiceError):
    """There is no such user, media, comment, tag or place."""

    error_type = "APINotFoundError"
    code = 400  # as it was in Instagram's API; an unknown path is a 404


class NotAllowed(ServiceError):
    """The account is private, the owner blocked the viewer, or a limit is reached."""

    error_type = "APINotAllowedError"
    code = 400


class InvalidClient(ServiceError):
    """No `access_token` or `client_id`, or a malformed one."""

    error_type = "OAuthParameterException"
    code = 400


class InvalidToken(ServiceError):
    """The token is unknown, expired or revoked."""

    error_type = "OAuthAccessTokenException"
    code = 400


class ScopeMissing(ServiceError):
    """The token lacks the scope that the call needs."""

    error_type = "OAuthPermissionsException"
    code = 403


class SignatureWrong(ServiceError):
    """The request's signature does not fit, or is missing where the client asked for it."""

    error_type = "OAuthForbiddenException"
    code = 403


class RateLimited(ServiceError):
    """Too many requests in an hour."""

    error_type = "OAuthRateLimitException"
    code = 429
