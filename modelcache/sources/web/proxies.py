"""The proxies that the environment names: http_proxy, https_proxy, all_proxy, no_proxy."""

from __future__ import annotations

import base64
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from modelcache.errors import InvalidConfig
from modelcache.sources.source import ProxyAddress

PORT_DEFAULT: Final = 80  # as urllib and wget have it


def proxy_for(parts: SplitResult) -> ProxyAddress | None:
    """The proxy that the environment names for this URL (http_proxy, https_proxy, no_proxy).

    Raises InvalidConfig for one that cannot be used; its text may hold a password and is not shown.
    """
    proxies = getproxies()
    name = parts.scheme if proxies.get(parts.scheme) else "all"
    text = proxies.get(name)
    if not text or proxy_bypass(parts.hostname or "") or proxy_bypass(parts.netloc):
        return None
    try:
        proxy = urlsplit(text if "://" in text else f"http://{text}")
        host, port = proxy.hostname, proxy.port
    except ValueError as error:
        raise InvalidConfig(f"{name}_proxy in the environment is not a URL") from error
    if proxy.scheme != "http" or not host:
        raise InvalidConfig(f"{name}_proxy in the environment must look like http://host:port")
    authorization = ""
    if proxy.username is not None:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return ProxyAddress(host, port or PORT_DEFAULT, authorization)
