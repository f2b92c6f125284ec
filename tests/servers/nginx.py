"""nginx over a folder, plain or with TLS; JSON indexes for directories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.servers.certificates import Certificates
from tests.servers.process import Server, find_program

_CONFIGURATION = """
daemon off;
worker_processes 2;
{user}
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 10000000;
  default_type application/octet-stream;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port}{tls};
    {certificates}
    root {root};
    autoindex on;
    autoindex_format json;
    {extra}
  }}
}}
"""


class Nginx(Server):
    """Serves `root`. `extra` goes into the server block."""

    def __init__(self, root: Path, tls: Certificates | None = None, extra: str = "") -> None:
        super().__init__()
        self._program = find_program("nginx", "apt-get install nginx-light")
        self._root = root
        self._extra = extra
        self._tls = tls
        self.scheme = "https" if tls else "http"

    def command(self) -> Sequence[str]:
        certificates = ""
        if self._tls:
            certificates = (
                f"ssl_certificate {self._tls.cert_file};ssl_certificate_key {self._tls.key_file};"
            )
        path = self.folder / "nginx.conf"
        path.write_text(
            _CONFIGURATION.format(
                folder=self.folder,
                port=self.port,
                tls=" ssl" if self._tls else "",
                certificates=certificates,
                root=self._root,
                extra=self._extra,
                user="user root;",  # ignored, with a warning, by anybody else
            )
        )
        return [self._program, "-p", str(self.folder), "-c", str(path)]
