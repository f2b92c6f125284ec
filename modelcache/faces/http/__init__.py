"""The agent's API over HTTP: the control plane. It carries no weights."""

from modelcache.faces.http.app import create_app
from modelcache.faces.http.guard import Guard

__all__ = ["Guard", "create_app"]
