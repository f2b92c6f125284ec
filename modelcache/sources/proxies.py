"""The proxies that the environment names: http_proxy, https_proxy, all_proxy, no_proxy."""

from __future__ import annotations

import base64
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from modelcache.errors import InvalidConfig
from modelcache.sources.source import ProxyAddress


def proxy_for(parts: SplitResult) -> ProxyAddress | None:
    """The proxy that the environment names for this URL (http_proxy, https_proxy, no_proxy)."""
    proxies = getproxies()
    address = proxies.get(parts.scheme) or proxies.get("all")
    if not address or proxy_bypass(parts.hostname or ""):
        return None
    proxy = urlsplit(address if "://" in address else f"http://{address}")
    if not proxy.hostname:
        raise InvalidConfig(f"{parts.scheme}_proxy does not name a host")
    authorization = ""
    if proxy.username is not None:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return ProxyAddress(proxy.hostname, proxy.port or 3128, authorization)
