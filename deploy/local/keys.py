"""What the local stack needs of keys, made once: a server's certificate of its own, and a phone app's signing key.

Run by programs.py with the virtual environment's Python, as `keys.py <directory> <server> <IP address>`.
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


def make_certificate(directory: Path, server: str, address: str) -> None:
    """Writes `<server>.pem`, which vouches for itself, and `<server>.key`."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, server)])
    # pgBackRest 2.45 knows no addresses in certificates, only names.
    names = [x509.IPAddress(ipaddress.ip_address(address)), x509.DNSName(address)]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    write(directory / f"{server}.pem", certificate.public_bytes(serialization.Encoding.PEM))
    write(directory / f"{server}.key", pem(key))  # last: then both are there


if __name__ == "__main__":
    directory, server, address = Path(sys.argv[1]), *sys.argv[2:]
    if server == "apns":
        write(directory / "apns.p8", pem(ec.generate_private_key(ec.SECP256R1())))
    make_certificate(directory, server, address)
