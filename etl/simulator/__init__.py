"""A Checkly look-alike for demos and tests: a believable account behind the API's own routes.

Hides everything but two names and imports nothing else of `etl`:

    with Simulator(World(seed=1, now=datetime(2025, 6, 1, tzinfo=UTC))) as simulator:
        requests.get(f"{simulator.url}/v1/test-sessions", headers=...)
"""

from etl.simulator.server import RecordedRequest, Simulator
from etl.simulator.world import World

__all__ = ["RecordedRequest", "Simulator", "World"]
