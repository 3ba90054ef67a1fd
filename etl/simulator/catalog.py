"""What the simulated company is made of: its projects, checks, people, failures and bad days.

Hides the words and numbers that make the world believable; nothing here is random and nothing has a
date. `timeline.py` turns it into a history.
"""

from __future__ import annotations

from dataclasses import dataclass

EU, US, ASIA = "eu-central-1", "us-east-1", "ap-southeast-2"
PRIVATE = "acme-dc-frankfurt"
PRIVATE_LOCATION_ID = "44444444-4444-4444-8444-444444444444"

PLAYWRIGHT_TYPES = frozenset({"BROWSER", "PLAYWRIGHT", "MULTI_STEP"})


@dataclass(frozen=True, slots=True)
class Failure:
    """One way to fail. Every project that meets it gets an error group of its own for it."""

    key: str
    cleaned: str
    raw: str
    is_error: bool = False  # it broke (hasErrors) rather than an assertion said no (hasFailures)
    takes_ms: int | None = None  # a timeout lasts as long as the timeout, whatever the check does
    analysis: dict[str, object] | None = None
    archived: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """What runs. `fails_with` is its ordinary failure: on feature branches, by its trait, or by bad luck.

    `trait` says how the check misbehaves when nothing is wrong with what it tests:
    retry   the first try fails now and then, the retry passes
    commit  passes and fails on the same commit, retries or not
    flip    the verdict depends on the commit, in no way that anyone understands
    slow    its duration climbs during the last week
    """

    key: str
    name: str
    type: str
    usual_ms: int
    fails_with: str
    retries: int = 0
    trait: str = ""
    often: bool = False  # part of nearly every test session


@dataclass(frozen=True, slots=True)
class Project:
    key: str
    name: str
    repository: str
    checks: tuple[Check, ...]
    ticket: str  # the key of its issue tracker
    topics: tuple[str, ...]  # what people work on


@dataclass(frozen=True, slots=True)
class Breakage:
    """A bad time: the named checks fail with `failure` from `began_hours` to `ended_hours` ago.

    An `ended_hours` below 0 has not ended yet. While it lasts people run the checks again and again,
    every `rerun_hours`, on the environments named.
    """

    project: str
    checks: tuple[str, ...]
    failure: str
    began_hours: float
    ended_hours: float
    rerun_hours: float
    environments: tuple[str, ...] = ("production", "staging")
    probability: float = 1.0


PEOPLE = (
    "priya.natarajan",
    "jonas-weber",
    "mlopez",
    "aiko-tanaka",
    "s.oconnor",
    "tomasz-k",
    "fatima.elamrani",
    "ben-carter",
    "dependabot[bot]",
)

FAILURES = {
    failure.key: failure
    for failure in (
        Failure(
            "click_timeout",
            "TimeoutError: locator.click: Timeout <number>ms exceeded. Call log: waiting for "
            "getByRole('button', { name: 'Pay now' })",
            "TimeoutError: locator.click: Timeout 30000ms exceeded.\nCall log:\n"
            "\x1b[2m  - waiting for getByRole('button', { name: 'Pay now' })\x1b[22m\n"
            "\x1b[2m    - locator resolved to <button disabled>Pay now</button>\x1b[22m",
            is_error=True,
            takes_ms=30_000,
            analysis={
                "classification": "FLAKY TEST",
                "userImpact": "None seen: the button becomes active when the card form has loaded.",
                "rootCause": "The card form is an iframe of the payment provider. In slow runs it loads "
                "after the 30 s timeout has begun, so the click waits on a disabled button.",
                "codeFix": "await expect(page.getByRole('button', { name: 'Pay now' })).toBeEnabled();",
                "evidence": [
                    {
                        "artifacts": [{"name": "NETWORK_REQUESTS", "type": "TRACE"}],
                        "description": "js.provider.example/v3 took 27.9 s in the failed attempt.",
                    }
                ],
                "referenceLinks": [{"url": "https://playwright.dev/docs/actionability", "title": "Actionability"}],
            },
        ),
        Failure(
            "badge",
            "Error: expect(locator).toHaveText(expected) failed Locator: getByTestId('cart-badge')",
            "Error: expect(locator).toHaveText(expected) failed\n\nLocator:  getByTestId('cart-badge')\n"
            'Expected: "2"\nReceived: "1"\nTimeout:  5000ms',
        ),
        Failure(
            "screenshot",
            "Error: expect(page).toHaveScreenshot(expected) failed <number> pixels are different",
            "Error: expect(page).toHaveScreenshot(expected) failed\n\n"
            "  1843 pixels (ratio 0.02 of all image pixels) are different.\n\n"
            "  Snapshot: product-page-webkit.png",
        ),
        Failure(
            "gift_card",
            "Error: expect(received).toBe(expected) Expected: <money> Received: <money> gift card balance",
            "Error: expect(received).toBe(expected) // Object.is equality\n\n"
            'Expected: "€25.00"\nReceived: "€0.00"\n\n'
            "  at checkout/gift-card.spec.ts:41:58 (gift card balance)",
            analysis={
                "classification": "APPLICATION BUG",
                "userImpact": "Customers who pay with a gift card see a balance of 0 and cannot use it.",
                "rootCause": "GET /v2/giftcards/:code answers with `balanceCents` since the ledger move; "
                "the storefront still reads `balance`.",
                "codeFix": None,
                "evidence": None,
                "referenceLinks": None,
            },
        ),
        Failure(
            "strict",
            "Error: locator.click: Error: strict mode violation: <locator> resolved to <number> elements",
            "Error: locator.click: Error: strict mode violation: getByRole('link', { name: 'Orders' }) "
            "resolved to 2 elements:\n    1) <a href='/account/orders'>Orders</a>\n"
            "    2) <a href='/help/orders'>Orders and returns</a>",
            is_error=True,
        ),
        Failure(
            "page_refused",
            "Error: page.goto: net::ERR_CONNECTION_REFUSED at <url>",
            "Error: page.goto: net::ERR_CONNECTION_REFUSED at https://www.acme.shop/\nCall log:\n"
            '\x1b[2m  - navigating to "https://www.acme.shop/", waiting until "load"\x1b[22m',
            is_error=True,
            analysis={
                "classification": "INFRA ERROR",
                "userImpact": "The shop could not be reached at all.",
                "rootCause": "The ingress controller lost its backends when the node pool was drained.",
                "codeFix": None,
                "evidence": [
                    {
                        "artifacts": [
                            {"name": "HTTP_REQUEST", "type": "REQUEST"},
                            {"name": "TIMING_PHASES", "type": "TIMINGS"},
                        ],
                        "description": "Connections were refused within 2 ms from every location.",
                    }
                ],
                "referenceLinks": [],
            },
        ),
        Failure(
            "status_503",
            "AssertionError: status code: expected <number> to equal <number> (Service Unavailable)",
            "AssertionError: status code: expected 503 to equal 200 (Service Unavailable)",
        ),
        Failure(
            "refused",
            "Error: connect ECONNREFUSED <address>",
            "Error: connect ECONNREFUSED 10.20.4.17:5432",
            is_error=True,
        ),
        Failure(
            "grpc",
            "Error: 14 UNAVAILABLE: No connection established. Last error: Deadline exceeded",
            "Error: 14 UNAVAILABLE: No connection established. Last error: Deadline exceeded. "
            "Resolution note: risk-engine.internal:50051",
            is_error=True,
            takes_ms=10_000,
        ),
        Failure(
            "certificate",
            "Error: certificate has expired (CERT_HAS_EXPIRED)",
            "Error: certificate has expired (CERT_HAS_EXPIRED): CN=api.acme.shop, issued by R11",
            is_error=True,
        ),
        Failure(
            "dns",
            "Error: queryA ENOTFOUND <host>",
            "Error: queryA ENOTFOUND www.acme.shop (resolver 1.1.1.1)",
            is_error=True,
        ),
        Failure(
            "token",
            "AssertionError: status code: expected <number> to equal <number> (invalid_client)",
            'AssertionError: status code: expected 401 to equal 200\n{"error":"invalid_client"}',
            archived=True,
        ),
        Failure(
            "schema",
            "AssertionError: JSON body: $.items[<number>].price is a string, expected a number",
            "AssertionError: JSON body: $.items[0].price is a string, expected a number",
        ),
        Failure(
            "too_slow",
            "Error: response time <number> ms is over the maximum of <number> ms",
            "Error: response time 5214 ms is over the maximum of 5000 ms",
            takes_ms=5_214,
        ),
        Failure(
            "not_ok",
            "Error: expect(response).toBeOK() failed <number> Internal Server Error",
            "Error: expect(response).toBeOK() failed\n\n"
            "Call log:\n  - → POST https://api.acme.shop/v2/payouts\n  - ← 500 Internal Server Error",
        ),
        Failure(
            "packet_loss",
            "Error: packet loss <number> % is over the limit of <number> %",
            "Error: packet loss 100 % is over the limit of 10 % (10 packets sent, 0 received)",
            is_error=True,
        ),
    )
}

WEBSHOP = Project(
    key="webshop",
    name="Acme Webshop",
    repository="acme/webshop",
    checks=(
        Check(
            "pay-card",
            "Checkout: pay with credit card",
            "BROWSER",
            14_200,
            "click_timeout",
            2,
            "retry",
            True,
        ),
        Check("gift-card", "Checkout: pay with gift card", "BROWSER", 11_800, "strict", 1, often=True),
        Check("guest", "Checkout: guest order with express delivery", "BROWSER", 16_900, "strict", 1),
        Check("badge", "Cart: badge shows the number of items", "BROWSER", 6_300, "badge", 1, "commit", True),
        Check(
            "search",
            "Search: filter shoes by size and colour",
            "BROWSER",
            5_200,
            "strict",
            1,
            "slow",
            True,
        ),
        Check("password", "Login: reset a forgotten password", "BROWSER", 9_100, "strict", 1),
        Check("address", "Account: change the delivery address", "BROWSER", 7_700, "strict", 1),
        Check("storefront", "Storefront suite (Chromium)", "PLAYWRIGHT", 48_000, "strict", 1),
        Check(
            "visual",
            "Visual: product page (WebKit)",
            "PLAYWRIGHT",
            21_000,
            "screenshot",
            1,
            "flip",
            True,
        ),
        Check("present", "Agent: find a birthday present under 50 €", "AGENTIC", 39_000, "strict"),
        Check("order-flow", "Order flow: from cart to confirmation mail", "MULTI_STEP", 4_900, "schema", 1),
        Check("products", "Catalog API: list products", "API", 240, "schema", 1),
        Check("sku", "Catalog API: product by SKU", "API", 130, "schema", 1),
        Check("stock", "Stock API: availability in stores", "API", 310, "schema", 1),
        Check("home", "Home page answers", "URL", 180, "too_slow"),
        Check("dns-www", "DNS: www.acme.shop", "DNS", 22, "too_slow"),
        Check("tls-www", "Certificate of www.acme.shop", "SSL", 95, "too_slow"),
    ),
    ticket="SHOP",
    topics=(
        "Let customers pay with gift cards",
        "Filter shoes by size and colour",
        "Round the cart total once",
        "Offer express delivery to guests",
        "Upgrade Next.js",
        "Make the main menu usable by keyboard",
        "Add a wish list",
        "Move the checkout state into one reducer",
        "Fix the date picker in Safari",
        "Show stock in nearby stores",
        "Remember the last used address",
        "Load product images lazily",
        "Translate the returns form to Dutch",
        "Show delivery dates on the product page",
        "Remove the old newsletter banner",
        "Cache the category tree",
        "Validate postal codes per country",
        "Fix the flicker of the cart drawer",
        "Send the order mail only once",
        "Compare up to four products",
        "Drop support for Safari 14",
        "Track search terms without results",
        "Fix the price of bundles",
        "Sort reviews by helpfulness",
    ),
)

PAYMENTS = Project(
    key="payments",
    name="Acme Payments",
    repository="acme/payments-api",
    checks=(
        Check("authorise", "Payments API: authorise a card", "API", 420, "status_503", 1, often=True),
        Check("refund", "Payments API: capture and refund", "API", 690, "status_503", 1, "retry", True),
        Check("transactions", "Payments API: list transactions", "API", 350, "too_slow", 1),
        Check(
            "webhook",
            "Payments API: webhook arrives signed",
            "API",
            1_250,
            "too_slow",
            1,
            "commit",
            True,
        ),
        Check("balance", "Ledger API: balance after a transfer", "API", 280, "schema", 1, "flip", True),
        Check("token", "Login: OAuth client credentials", "API", 160, "too_slow", 1),
        Check("payout", "Payout: create, approve, settle", "MULTI_STEP", 6_800, "not_ok", 1),
        Check("dispute", "Dispute: open and answer", "MULTI_STEP", 5_400, "not_ok", 1),
        Check("risk", "Risk engine: score a payment", "GRPC", 75, "grpc"),
        Check("ledger-db", "Ledger database accepts connections", "TCP", 14, "refused"),
        Check("broker", "Message broker accepts connections", "TCP", 11, "refused"),
        Check("gateway", "Ping the payment gateway", "ICMP", 19, "packet_loss"),
        Check("tls-api", "Certificate of api.acme.shop", "SSL", 88, "too_slow"),
        Check("dns-api", "DNS: api.acme.shop", "DNS", 18, "too_slow"),
        Check("route", "Route to the card network", "TRACEROUTE", 640, "packet_loss"),
        Check("status", "Status page answers", "URL", 150, "too_slow"),
    ),
    ticket="PAY",
    topics=(
        "Refund a part of a payment",
        "Keep the idempotency key across retries",
        "Accept SEPA instant transfers",
        "Move to the current Node LTS",
        "Lock ledger rows in account order",
        "Attach files to a dispute",
        "Send webhooks from their own queue",
        "Treat yen as a currency without cents",
        "Rotate signing keys without downtime",
        "Explain declined cards to merchants",
        "Page the list of payouts",
        "Add a dry run to settlements",
        "Cap retries of failed webhooks",
        "Store amounts as integers",
        "Fix a race in capture and void",
        "Log the risk score with its reasons",
        "Close idle database connections",
        "Validate IBANs before a payout",
    ),
)

PROJECTS = {project.key: project for project in (WEBSHOP, PAYMENTS)}

INCIDENT_HOURS = (9 * 24 + 2.0, 9 * 24 - 1.5)

_SHOP_PAGES = ("pay-card", "gift-card", "guest", "badge", "search", "password", "address", "storefront")
_PAYMENT_CALLS = ("authorise", "refund", "transactions", "webhook", "balance", "token", "payout")

BREAKAGES = (
    # The incident: nine days ago the cluster lost its ingress for some hours.
    Breakage("webshop", _SHOP_PAGES, "page_refused", *INCIDENT_HOURS, 0.5, probability=0.9),
    Breakage(
        "webshop",
        ("products", "sku", "stock", "home"),
        "status_503",
        *INCIDENT_HOURS,
        0.8,
        probability=0.9,
    ),
    Breakage("payments", _PAYMENT_CALLS, "status_503", *INCIDENT_HOURS, 0.6, probability=0.9),
    Breakage(
        "payments",
        ("ledger-db", "broker"),
        "refused",
        *INCIDENT_HOURS,
        1.1,
        probability=0.9,
    ),
    # Broken on main since yesterday and not fixed yet.
    Breakage("webshop", ("gift-card",), "gift_card", 26, -10_000, 3.7),
    # Ordinary trouble of the past months.
    Breakage("payments", ("risk",), "grpc", 15 * 24, 15 * 24 - 5, 1.4),
    Breakage("webshop", ("dns-www",), "dns", 21 * 24, 21 * 24 - 2.5, 0.7),
    Breakage("payments", ("tls-api",), "certificate", 33 * 24, 33 * 24 - 7, 1.9),
    Breakage("payments", ("gateway", "route"), "packet_loss", 40 * 24, 40 * 24 - 3, 0.9),
    Breakage("payments", ("token",), "token", 47 * 24, 47 * 24 - 30, 4.5),
    Breakage("webshop", ("guest", "address"), "strict", 58 * 24, 58 * 24 - 20, 3.5),
    Breakage("payments", ("payout", "dispute"), "not_ok", 72 * 24, 72 * 24 - 9, 2.2),
)
