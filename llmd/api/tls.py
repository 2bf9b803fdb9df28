"""The certificate of HTTPS: loaded, or refused with the file at fault and the reason."""

from __future__ import annotations

import ssl

from llmd.errors import ConfigError

_CERT, _KEY = "server.tls_cert", "server.tls_key"
_NO_KEY_OF_IT = "KEY_VALUES_MISMATCH"


def server_context(cert: str, key: str) -> ssl.SSLContext | None:
    """Return what makes connections HTTPS; None where nothing is configured.

    Args:
        cert: The file with the certificate and its chain, PEM; "" for plain HTTP.
        key: The file with its private key, PEM.

    Raises:
        ConfigError: They cannot be used; each fault names its setting, its file and the reason.
    """
    if not cert:
        return None
    faults = [*_looked_at(_CERT, cert), *_looked_at(_KEY, key)]
    if faults:
        raise ConfigError(faults)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ValueError) as error:
        raise ConfigError([_why_refused(cert, key, error)]) from error
    context.set_alpn_protocols(["http/1.1"])
    return context


def _looked_at(setting: str, file: str) -> list[str]:
    """Return what is wrong with one file at first sight."""
    try:
        with open(file, "rb") as stream:  # noqa: PTH123 - "" and odd names are the reader's trouble
            text = stream.read()
    except (OSError, ValueError) as error:
        return [f"{setting}: {file} cannot be read: {getattr(error, 'strerror', '') or error}"]
    if setting == _CERT:
        if b"-----BEGIN CERTIFICATE-----" not in text:
            return [f"{setting}: {file} holds no certificate in PEM form"]
    elif b"PRIVATE KEY-----" not in text:
        return [f"{setting}: {file} holds no private key in PEM form"]
    elif b"ENCRYPTED" in text:  # OpenSSL would ask for the passphrase on the terminal
        return [
            f"{setting}: the key in {file} has a passphrase, which nobody could type; take it off "
            "(openssl pkey -in FILE -out NEW)"
        ]
    return []


def _why_refused(cert: str, key: str, error: OSError | ValueError) -> str:
    """Say which of two files that look right is at fault."""
    if isinstance(error, ssl.SSLError) and error.reason == _NO_KEY_OF_IT:
        return f"{_KEY}: {key} is not the key of the certificate in {cert}"
    told = (getattr(error, "reason", None) or str(error)).replace("_", " ").lower()
    if "pem lib" in told:  # all that OpenSSL says of what it cannot decode
        told = "its PEM is damaged"
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_verify_locations(cert)
    except (OSError, ValueError):
        return f"{_CERT}: {cert} cannot be used: {told}"
    weak = told.startswith(("ee ", "ca "))  # such as "ee key too small": of the certificate
    return f"{_CERT if weak else _KEY}: {cert if weak else key} cannot be used: {told}"
