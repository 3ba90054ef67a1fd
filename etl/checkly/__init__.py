"""The Checkly API: what may be asked, how to wait, when to try again, and what each answer means.

    client      what may be asked, and what an answer means
    retry       what became of a call, and when it is made again
    transport   one exchange over HTTP, and its deadline
    proxies     the way to the API, from the environment

Hides HTTP: callers get checked JSON documents or an error of our tree.
"""

from __future__ import annotations

from etl.checkly.client import LARGE_BODY, PAGE_SIZE, Calls, Client, Pace, Page
from etl.checkly.proxies import proxy_of
from etl.checkly.retry import CALL_OUTCOMES, LONGEST_PAUSE, retry_after
from etl.checkly.transport import SLACK

__all__ = [
    "CALL_OUTCOMES",
    "LARGE_BODY",
    "LONGEST_PAUSE",
    "PAGE_SIZE",
    "SLACK",
    "Calls",
    "Client",
    "Pace",
    "Page",
    "proxy_of",
    "retry_after",
]
