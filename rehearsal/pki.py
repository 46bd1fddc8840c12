"""Keys and certificates that the rehearsal's components need before they start."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFE = timedelta(days=365)


def private(path: Path, content: str | bytes) -> None:
    """Write a file that only its owner can read."""
    path.touch(mode=0o600)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Make a private key and write it as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    # The API server reads the public half out of this form, and not out of PKCS 8.
    form = serialization.PrivateFormat.TraditionalOpenSSL
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    private(path, pem)
    return key


def write_certificate(certificate: Path, key: Path, name: str, address: str) -> None:
    """Make a key and a certificate for both ends of a connection to ``address``, which trusts itself alone."""
    secret = write_key(key)
    who = _name(name)
    made = (
        _builder(who, who, secret.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .sign(secret, hashes.SHA256())
    )
    private(certificate, made.public_bytes(serialization.Encoding.PEM))


def write_authority(certificate: Path, key: Path, name: str) -> None:
    """Make the key and the certificate of an authority that signs the certificates of clients."""
    secret = write_key(key)
    who = _name(name)
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    made = _builder(who, who, secret.public_key()).add_extension(constraints, critical=True)
    private(certificate, made.sign(secret, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def client(certificate: Path, key: Path, user: str, group: str) -> bytes:
    """A new certificate and key, as one PEM text, by which the API server and kubelets know ``user`` of ``group``.

    ``certificate`` and ``key`` are those of the authority that signs it.
    """
    authority = x509.load_pem_x509_certificate(certificate.read_bytes())
    signer = serialization.load_pem_private_key(key.read_bytes(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    secret = ec.generate_private_key(ec.SECP256R1())
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    made = _builder(_name(user, group), authority.subject, secret.public_key()).add_extension(usage, critical=False)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    pem = made.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return pem + secret.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def write_ssh_key(path: Path) -> str:
    """Make an SSH key at ``path`` and its public half beside it, as .pub; returns that."""
    secret = ed25519.Ed25519PrivateKey.generate()
    form = serialization.PrivateFormat.OpenSSH
    private(path, secret.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    public = secret.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.with_name(f"{path.name}.pub").write_bytes(public + b"\n")
    return public.decode()


def _name(name: str, group: str = "") -> x509.Name:
    groups = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group)] if group else []
    return x509.Name([*groups, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _LIFE)
    )
