"""A CA of a test's own, with a certificate for the API server and one for a user."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

from tests.conftest import require_tool

#: The name in the server's certificate, beside its address.
SERVER_NAME = "kube.test"


class Certificates:
    """Files in ``folder``: ca.pem, server.pem, server.key, client.pem, client.key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._openssl("req -x509 -keyout ca.key -out ca.pem -subj /CN=test-ca")
        self._sign("server", f"subjectAltName=IP:127.0.0.1,DNS:{SERVER_NAME}")
        self._sign("client", "extendedKeyUsage=clientAuth")

    def server(self, *, clients: bool = False) -> ssl.SSLContext:
        """TLS for a server; with ``clients`` it asks for a certificate of the same CA."""
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
        if clients:
            tls.load_verify_locations(self.folder / "ca.pem")
            tls.verify_mode = ssl.CERT_REQUIRED
        return tls

    def _sign(self, name: str, extension: str) -> None:
        self._openssl(f"req -keyout {name}.key -out {name}.csr -subj /CN={name}")
        (self.folder / f"{name}.ext").write_text(extension + "\n")
        self._openssl(
            f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem "
            f"-extfile {name}.ext"
        )

    def _openssl(self, command: str) -> None:
        verb, *rest = command.split()
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        subprocess.run(
            [require_tool("openssl"), verb, *(new if verb == "req" else []), *rest],
            cwd=self.folder,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=30,
        )
