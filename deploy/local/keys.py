"""What the local stack's APNs double needs of keys, made once: a certificate of its own, and a phone app's signing key.

Run by programs.py with the virtual environment's Python, as `keys.py <directory> <IP address>`.
"""

import datetime
import ipaddress
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

LIFETIME = datetime.timedelta(days=3650)


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write(path: Path, content: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(content)


if __name__ == "__main__":
    directory, address = Path(sys.argv[1]), ipaddress.ip_address(sys.argv[2])
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "APNs double")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(address)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    write(directory / "apns.pem", certificate.public_bytes(serialization.Encoding.PEM))
    write(directory / "apns.key", pem(key))
    write(directory / "apns.p8", pem(ec.generate_private_key(ec.SECP256R1())))  # last: then all are there
