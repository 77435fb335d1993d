"""How an app shows APNs who it is: by a certificate, or by a JSON Web Token that its signing key makes ("Establishing a
token-based connection to APNs")."""

import threading
import time
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate
from jwcrypto import jwk, jwt
from jwcrypto.common import JWException

JWT_SECONDS = 40 * 60  # Apple takes a token for an hour, and no newer one within 20 minutes
NEW_JWT_SECONDS = 10  # how soon another may follow, if Apple says that it has expired (our clock is wrong)


@dataclass(frozen=True)
class Credentials:
    """A certificate with its key (PEM), or a signing key (.p8) with its IDs."""

    topic: str  # the app's bundle ID
    certificate: str = ""
    key: str = ""
    key_id: str = ""
    team_id: str = ""


class Authorization:
    """The headers that all of an app's notifications have, on all connections the same.

    Raises ValueError when the credentials' key or certificate is none.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._headers: tuple[str, ...] = (f"apns-topic: {credentials.topic}",)
        self._since, self._until = 0.0, float("inf")
        self._lock = threading.Lock()
        if credentials.key:
            self._renew()
        else:
            _require_usable(credentials.certificate.encode())

    def headers(self) -> tuple[str, ...]:
        with self._lock:
            if time.monotonic() > self._until:
                self._renew()
            return self._headers

    def has_expired(self) -> None:
        """Apple says so, of all that were on their way: one new token is enough, and more than Apple takes."""
        self._until = min(self._until, self._since + NEW_JWT_SECONDS)

    def _renew(self) -> None:
        token = jwt.JWT(
            header={"alg": "ES256", "kid": self._credentials.key_id},
            claims={"iss": self._credentials.team_id, "iat": int(time.time())},
        )
        try:
            token.make_signed_token(jwk.JWK.from_pem(self._credentials.key.encode()))
        except (JWException, TypeError, ValueError) as error:
            raise ValueError(f"key: {error}") from None
        self._headers = (f"apns-topic: {self._credentials.topic}", f"authorization: bearer {token.serialize()}")
        self._since = time.monotonic()
        self._until = self._since + JWT_SECONDS


def _require_usable(pem: bytes) -> None:
    """Raises ValueError unless it is a certificate with its own key. libcurl would say so with each notification."""
    try:
        certificate, key = load_pem_x509_certificate(pem), load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"certificate: {error}") from None
    if certificate.public_key() != key.public_key():
        raise ValueError("certificate: the key is that of another")
