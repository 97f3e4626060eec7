"""The TLS certificate of a host: self-signed ECDSA P-256, made once, pinned by everybody who dials the host.

No authority signs anything: the certificate itself travels in invites and peer records, and a caller
accepts it as the only root. The name in it is the same for all hosts and not a domain, so that
addresses may change; callers check that fixed name.
"""

from __future__ import annotations

import contextlib
import datetime
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sapo_jax.swarm.wire.private_file import PrivateFileError, create_private, read_private

TLS_NAME = "host.sapo.invalid"  # .invalid never resolves, so no public certificate can carry it
LIFETIME = datetime.timedelta(days=3650)
# Clocks of the swarm may differ by a day in either direction, and a certificate of the future is refused.
BACKDATED = datetime.timedelta(days=3)
MAX_CERTIFICATE_BYTES = 2048  # ours have about 400
_WHAT = "certificate file"


class CertificateError(ValueError):
    """A certificate that cannot be used; the text says which and why."""


class ExpiredCertificateError(CertificateError):
    """A certificate outside its time: its host needs a new one, and a new invite to tell others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostCertificate:
    """A host's certificate with its secret key, both PEM; `der` is what others pin."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)

    @classmethod
    def generate(cls, now: datetime.datetime) -> HostCertificate:
        """Returns a new certificate, valid for ten years, that is kept nowhere."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, TLS_NAME)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + LIFETIME)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(TLS_NAME)]), critical=False)
            # A root for itself and for nothing below it.
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(
            certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
            key_pem=key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )

    @classmethod
    def load_or_create(cls, path: Path, now: datetime.datetime) -> HostCertificate:
        """Returns the certificate and key in `path`, making the file (mode 0600) if there is none.

        A file that is there is never replaced: others have pinned what it holds.

        Raises:
            CertificateError: the file is unreadable, open to others, damaged, or cannot be written.
            ExpiredCertificateError: the certificate is outside its time.
        """
        try:
            with contextlib.suppress(FileNotFoundError):
                return cls._load(path, now)
            made = cls.generate(now)
            try:
                create_private(path, made.key_pem + made.certificate_pem, _WHAT)
            except FileExistsError:  # another process was faster: its certificate is the one
                return cls._load(path, now)
            return made
        except PrivateFileError as error:
            raise CertificateError(str(error)) from error

    @classmethod
    def _load(cls, path: Path, now: datetime.datetime) -> HostCertificate:
        content = read_private(path, _WHAT)
        try:
            key = serialization.load_pem_private_key(content, password=None)
            certificate = x509.load_pem_x509_certificate(content)
        except (ValueError, TypeError) as error:
            raise CertificateError(f"{_WHAT} {path}: holds no key and certificate; restore it from a copy") from error
        if key.public_key() != certificate.public_key():
            raise CertificateError(f"{_WHAT} {path}: key and certificate do not belong together")
        check_certificate(certificate.public_bytes(serialization.Encoding.DER), now, f"{_WHAT} {path}")
        return cls(
            certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
            key_pem=key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )

    @property
    def der(self) -> bytes:
        """The certificate alone, as DER."""
        return x509.load_pem_x509_certificate(self.certificate_pem).public_bytes(serialization.Encoding.DER)


def check_certificate(der: bytes, now: datetime.datetime, where: str) -> None:
    """Checks that a certificate of somebody's host can be pinned at all.

    Args:
        der: the certificate.
        now: with a time zone.
        where: begins the message, such as "invite file x".

    Raises:
        CertificateError: no certificate, too large, another kind of key, or another name.
        ExpiredCertificateError: outside its time.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise CertificateError(f"{where}: the certificate has {len(der)} bytes, at most {MAX_CERTIFICATE_BYTES}")
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_ours = TLS_NAME in names.get_values_for_type(x509.DNSName)
    except (ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise CertificateError(f"{where}: holds no usable certificate") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1) or not is_ours:
        raise CertificateError(f"{where}: the certificate is not one of a sapo_jax host (ECDSA P-256, {TLS_NAME})")
    if now > certificate.not_valid_after_utc:
        ended = certificate.not_valid_after_utc.date().isoformat()
        raise ExpiredCertificateError(f"{where}: the certificate expired on {ended}; ask its host for a new invite")
    if now < certificate.not_valid_before_utc:
        begins = certificate.not_valid_before_utc.date().isoformat()
        raise ExpiredCertificateError(f"{where}: the certificate begins on {begins}; is this machine's clock right?")


def pem_of(der: bytes) -> bytes:
    """Returns a DER certificate as PEM; raises CertificateError if it is none."""
    try:
        return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)
    except ValueError as error:
        raise CertificateError("holds no usable certificate") from error
