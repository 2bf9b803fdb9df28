"""What is wrong with a certificate or its key is said with the file's name."""

from __future__ import annotations

import pytest
import trustme

from llmd.api.tls import server_context
from llmd.errors import ConfigError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(folder / "cert")
    issued.private_key_pem.write_to_path(folder / "key")
    other.private_key_pem.write_to_path(folder / "other")
    (folder / "empty").touch()
    for name, kind in (("badcert", "CERTIFICATE"), ("badkey", "PRIVATE KEY")):
        (folder / name).write_text(f"-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n")
    locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
    (folder / "locked").write_text(locked)
    (folder / "dir").mkdir()
    return folder


def test_a_certificate_and_its_key_are_taken(files):
    assert server_context(str(files / "cert"), str(files / "key")) is not None


def test_without_a_certificate_it_is_plain_http():
    assert server_context("", "") is None


@pytest.mark.parametrize(
    ("cert", "key", "faults"),
    [
        ("gone", "key", ["tls_cert: {}/gone cannot be read: No such file or directory"]),
        ("cert", "gone", ["tls_key: {}/gone cannot be read: No such file or directory"]),
        ("dir", "key", ["tls_cert: {}/dir cannot be read: Is a directory"]),
        ("cert", "other", ["tls_key: {}/other is not the key of the certificate in {}/cert"]),
        ("cert", "empty", ["tls_key: {}/empty holds no private key in PEM form"]),
        ("badcert", "key", ["tls_cert: {}/badcert cannot be used: its PEM is damaged"]),
        ("cert", "badkey", ["tls_key: {}/badkey cannot be used: its PEM is damaged"]),
        (
            "key",
            "cert",
            [
                "tls_cert: {}/key holds no certificate in PEM form",
                "tls_key: {}/cert holds no private key in PEM form",
            ],
        ),
    ],
)
def test_each_fault_names_setting_file_and_reason(files, cert, key, faults):
    with pytest.raises(ConfigError) as refused:
        server_context(str(files / cert), str(files / key))
    assert refused.value.faults == [f"server.{fault.format(files, files)}" for fault in faults]


def test_nobody_is_asked_for_a_passphrase(files):
    with pytest.raises(ConfigError, match="has a passphrase"):
        server_context(str(files / "cert"), str(files / "locked"))
