"""Real FTP servers on loopback that see the whole file system: ProFTPD and vsftpd, as root."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mistamover.testing.needs import find
from tests.daemon import Daemon

USER = "mover"
PASSWORD = "sesame-open-9c41"


@dataclass
class Certificate:
    """A key and a certificate that signs itself, in PEM."""

    key: Path
    file: Path

    @property
    def parts(self) -> dict[str, Path]:
        """The files, by what they hold."""
        return {"Certificate": self.file, "CertificateKey": self.key}

    @classmethod
    def make(cls, directory: Path, address: str = "127.0.0.1", *, days: int = 2) -> Certificate:
        """A certificate for an address; it ends in so many days, or ended so many ago."""
        made = cls(directory / "key.pem", directory / "certificate.pem")
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=30)).not_valid_after(now + timedelta(days=days))
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        signed = builder.add_extension(alternative, critical=False).sign(key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        made.key.touch(mode=0o600)
        made.key.write_bytes(key.private_bytes(pem, *private))
        made.file.write_bytes(signed.public_bytes(pem))
        return made


@dataclass
class Proftpd(Daemon):
    """ProFTPD with a user of its own who is root; ``extra`` are lines of its configuration."""

    certificate: Certificate | None = None
    digests: bool = True

    def prepare(self) -> Sequence[str]:
        users = self.directory / "users"
        users.touch(mode=0o600)
        hashed = subprocess.run(
            [find("openssl") or "openssl", "passwd", "-6", "-stdin"],
            input=PASSWORD,
            capture_output=True,
            check=True,
            text=True,
        )
        users.write_text(f"{USER}:{hashed.stdout.strip()}:0:0::/:/bin/sh\n")
        lines = [
            *(["LoadModule mod_digest.c"] if self.digests else []),
            *(["LoadModule mod_tls.c"] if self.certificate else []),
            "ServerName test",
            "ServerType standalone",
            f"DefaultAddress {self.host}",
            f"Port {self.port}",
            "SocketBindTight on",
            "DefaultServer on",
            "UseReverseDNS off",
            "WtmpLog off",
            "TransferLog none",
            f"SystemLog {self.log}",
            f"PidFile {self.directory}/pid",
            f"ScoreboardFile {self.directory}/scoreboard",
            "DelayEngine off",
            "User root",
            "Group root",
            "RootLogin on",
            "RequireValidShell off",
            "AuthOrder mod_auth_file.c",
            f"AuthUserFile {users}",
            "AllowOverwrite on",
            *self._tls(),
            *self.extra,
        ]
        self.config.write_text("\n".join([*lines, ""]))
        return [find("proftpd") or "proftpd", "-n", "-q", "-c", str(self.config)]

    def _tls(self) -> list[str]:
        if self.certificate is None:
            return []
        files = [f"TLSEC{kind}File {path}" for kind, path in self.certificate.parts.items()]
        return ["TLSEngine on", *files, "TLSRequired on"]


@dataclass
class Vsftpd(Daemon):
    """vsftpd, which takes users of this machine for root. Within TLS it wants one session for all connections."""

    certificate: Certificate | None = None

    def prepare(self) -> Sequence[str]:
        empty = self.directory / "empty"
        empty.mkdir(exist_ok=True)
        options = {
            "listen": "YES",
            "listen_address": self.host,
            "listen_port": str(self.port),
            "background": "NO",
            "anonymous_enable": "NO",
            "local_enable": "YES",
            "check_shell": "NO",
            "pam_service_name": "other",
            "guest_enable": "YES",
            "guest_username": "root",
            "virtual_use_local_privs": "YES",
            "write_enable": "YES",
            "local_umask": "022",
            "seccomp_sandbox": "NO",
            "isolate": "NO",
            "isolate_network": "NO",
            "secure_chroot_dir": str(empty),
            "dual_log_enable": "YES",
            "vsftpd_log_file": str(self.log),
        }
        if self.certificate is not None:
            options |= {
                "ssl_enable": "YES",
                "require_ssl_reuse": "YES",
                "rsa_cert_file": str(self.certificate.file),
                "rsa_private_key_file": str(self.certificate.key),
            }
        lines = [f"{name}={value}" for name, value in options.items()]
        self.config.write_text("\n".join([*lines, *self.extra, ""]))
        return [find("vsftpd") or "vsftpd", str(self.config)]


# -- options --------------------------------------------------------------------------------------------------

Options = Mapping[str, Mapping[str, str]]


def to(server: Daemon, username: str = USER, password: str = PASSWORD) -> Options:
    """The options that lead to a server."""
    return {
        "outgoing": {"transfer_protocol": "ftp", "target_host": server.host},
        "ftp": {"port": str(server.port), "username": username, "password": password},
    }


def within_tls(server: Daemon, certificate: Certificate, *log_in: str) -> Options:
    """The options that lead to a server within TLS."""
    plain = to(server, *log_in)
    return {
        "outgoing": {**plain["outgoing"], "transfer_protocol": "ftps"},
        "ftps": {**plain["ftp"], "ca_file": str(certificate.file)},
    }
