"""The certificate with which the nodes of a cluster encrypt the traffic between them."""

import io
import zipfile
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

KEY_BITS = 2048
VALID_DAYS = 3650


def node_domain(region: str) -> str:
    """Return the wildcard name of the private addresses of a region's instances.

    https://docs.aws.amazon.com/vpc/latest/userguide/vpc-dns.html

    >>> node_domain("eu-west-1"), node_domain("us-east-1")
    ('*.eu-west-1.compute.internal', '*.ec2.internal')
    """
    return "*.ec2.internal" if region == "us-east-1" else f"*.{region}.compute.internal"


def certificate_zip(region: str, now: datetime | None = None) -> bytes:
    """Return a new self-signed certificate and its key, in the zip file that EMR expects.

    The names of the files are fixed: https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-encryption-enable.html
    """
    start = now or datetime.now(UTC)
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    domain = node_domain(region)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, domain)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - timedelta(days=1))  # the clock of a node may be late
        .not_valid_after(start + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(domain)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("privateKey.pem", private)
        archive.writestr("certificateChain.pem", pem)
        archive.writestr("trustedCertificates.pem", pem)
    return buffer.getvalue()
