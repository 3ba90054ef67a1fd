"""Proxies and CA bundles: what the environment says about the way to the API, looked up once per client."""

from __future__ import annotations

import os
from pathlib import Path

import urllib3
from requests.utils import get_environ_proxies, select_proxy

from etl.errors import ConfigError


def proxy_of(api_url: str) -> str | None:
    """Return the proxy of the environment for this URL, with its password. Raises ConfigError if it is no URL."""
    return select_proxy(api_url, proxies_of(api_url))


def proxies_of(api_url: str) -> dict[str, str]:
    """Return the proxies of the environment as `requests` has them. Raises ConfigError for one that is no URL."""
    proxies = get_environ_proxies(api_url)
    proxy = select_proxy(api_url, proxies)
    if proxy:
        # Checked here, because later the libraries' errors would tell its password.
        try:
            parts = urllib3.util.parse_url(proxy if "://" in proxy else f"http://{proxy}")
        except urllib3.exceptions.LocationParseError:
            parts = urllib3.util.Url()
        # A password that is not percent-encoded ends the host for a parser, and its rest is what the @ comes after.
        is_torn = "@" in (parts.request_uri + (parts.fragment or ""))
        if parts.scheme not in ("http", "https") or not parts.host or is_torn:
            name = f"{api_url.split(':', 1)[0].upper()}_PROXY"
            raise ConfigError(
                f"{name} (or ALL_PROXY) must be the URL of an HTTP proxy, http://HOST:PORT or "
                "http://USER:PASSWORD@HOST:PORT with special characters as %XX"
            )
    return proxies


def ca_bundle() -> str | bool:
    """Return the file of CA certificates that the environment names, else True. Raises ConfigError if it is gone."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        path = os.environ.get(name)
        if path:
            if not Path(path).exists():
                raise ConfigError(f"{name}: there is no file {path}")
            return path
    return True
