"""The pipeline that a user would write with dlt in an hour; runs in dlt's own virtual environment, `.venv/bench`.

    .venv/bench/bin/python bench/dlt_pipeline.py --api URL --url postgresql://... --state FOLDER

The list is paged by dlt's REST client, the documents are fetched by a parallelized transformer, `results` becomes a
child table, and both are merged on the primary key. Run twice with the same state it loads everything again, as
`checkly-etl backfill --force` does. The arrays of ids of a list entry are left out (each would be a child table), and
so are the error groups, which checkly-etl exports: dlt has the smaller task.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dlt
from dlt.sources.helpers.rest_client import RESTClient
from dlt.sources.helpers.rest_client.auth import BearerTokenAuth
from dlt.sources.helpers.rest_client.paginators import JSONResponseCursorPaginator

ACCOUNT = "33333333-3333-4333-8333-333333333333"
OF_THE_LIST = (
    "accountId", "projectId", "provider", "region", "privateLocationId", "invoker", "created_at", "updated_at",
)  # fmt: skip


@dlt.source
def checkly(api: str) -> Any:
    """Test sessions with their results."""
    client = RESTClient(
        base_url=api,
        headers={"x-checkly-account": ACCOUNT},
        auth=BearerTokenAuth("bench"),
        paginator=JSONResponseCursorPaginator(cursor_path="nextId", cursor_param="nextId"),
        data_selector="entries",
    )

    @dlt.resource(selected=False)
    def entries() -> Iterator[list[dict[str, Any]]]:
        yield from client.paginate("/v1/test-sessions", params={"limit": 100, "from": 0})

    @dlt.defer  # in one of the extract workers
    def read(entry: dict[str, Any]) -> dict[str, Any]:
        document: dict[str, Any] = client.get(f"/v1/test-sessions/{entry['id']}").json()
        return {**{name: entry.get(name) for name in OF_THE_LIST}, **document}

    @dlt.transformer(data_from=entries, primary_key="testSessionId", write_disposition="merge")
    def test_sessions(page: list[dict[str, Any]]) -> Iterator[Any]:
        for entry in page:
            yield read(entry)

    return test_sessions


def main() -> None:
    """Load once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--api", required=True)
    parser.add_argument("--url", required=True, help="postgresql://... or sqlite:///...")
    parser.add_argument("--state", required=True, type=Path, help="dlt's working folder")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument(
        "--inserts", action="store_true", help="on PostgreSQL: in the format that dlt takes by itself"
    )
    arguments = parser.parse_args()
    dlt.config["extract.workers"] = arguments.concurrency
    dlt.config["runtime.dlthub_telemetry"] = False
    file_format = None
    if arguments.url.startswith("sqlite"):
        destination = dlt.destinations.sqlalchemy(arguments.url)
        dataset = "main"
    else:
        # dlt insists on a password; a server that trusts us does not look at it.
        user, at, rest = arguments.url.partition("://")[2].partition("@")
        url = arguments.url if ":" in user else f"postgresql://{user}:-{at}{rest}"
        destination = dlt.destinations.postgres(url)
        dataset = "checkly"
        file_format = None if arguments.inserts else "csv"  # by COPY: faster than its default, INSERTs of many values
    pipeline = dlt.pipeline(
        "checkly_bench", pipelines_dir=str(arguments.state), destination=destination, dataset_name=dataset
    )
    loaded = pipeline.run(checkly(arguments.api), loader_file_format=file_format)
    loaded.raise_on_failed_jobs()


if __name__ == "__main__":
    main()
