"""What any exporter pays: fetching everything and throwing it away, and parsing and COPY without HTTP.

    .venv/bin/python -m bench.floors requests --api URL
    .venv/bin/python -m bench.floors threads --api URL
    .venv/bin/python -m bench.floors copy --dump FILE --url postgresql://... [--reload]

`requests` is one `requests.Session`, `threads` eight with one each: no retries, no deadline, no limit of a body, and
nothing is decoded but the list. `copy` reads the documents from a file and writes sessions and results into two
tables with a primary key and nothing else: no hashes, no executions, no links, no checks; a reload deletes a batch's
rows first.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

HEADERS = {"Authorization": "Bearer bench", "x-checkly-account": "33333333-3333-4333-8333-333333333333"}
BATCH = 200


def fetch(api: str, threads: int) -> None:
    """List, then every session."""
    import requests

    own = threading.local()

    def session() -> requests.Session:
        if not hasattr(own, "session"):
            own.session = requests.Session()
            own.session.headers.update(HEADERS)
        held: requests.Session = own.session
        return held

    def get(path: str, params: dict[str, str] | None = None) -> requests.Response:
        answer = session().get(f"{api}{path}", params=params, timeout=60)
        answer.raise_for_status()
        return answer

    def ids() -> Iterator[str]:
        params = {"limit": "100", "from": "0"}
        while True:
            page = get("/v1/test-sessions", params).json()
            yield from (entry["id"] for entry in page["entries"])
            if "nextId" not in page:
                return
            params["nextId"] = page["nextId"]

    def detail(id_: str) -> int:
        return len(get(f"/v1/test-sessions/{id_}").content)

    if threads == 1:
        for id_ in ids():
            detail(id_)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(detail, ids()):
                pass


SESSION = (
    "testSessionId", "testSessionLink", "name", "status", "startedAt", "stoppedAt", "timeElapsed",
)  # fmt: skip
METADATA = ("environment", "repoUrl", "commitId", "commitOwner", "commitMessage", "branchName")
RESULT = (
    "testSessionResultId", "testSessionResultLink", "checkId", "checkType", "name", "runLocation", "resultType",
    "status", "hasErrors", "hasFailures", "isDegraded", "aborted", "responseTime", "startedAt", "stoppedAt",
)  # fmt: skip
TABLES = """
    CREATE TABLE IF NOT EXISTS floor_sessions (id uuid PRIMARY KEY, link text, name text, status text,
        started_at timestamptz, stopped_at timestamptz, time_elapsed_ms double precision, environment text,
        repo_url text, commit_id text, commit_owner text, commit_message text, branch_name text);
    CREATE TABLE IF NOT EXISTS floor_results (session_id uuid, id uuid, link text, check_id uuid, check_type text,
        name text, run_location text, result_type text, status text, has_errors boolean, has_failures boolean,
        is_degraded boolean, aborted boolean, response_time_ms double precision, started_at timestamptz,
        stopped_at timestamptz, PRIMARY KEY (session_id, id));
"""


def copy(dump: Path, url: str, *, reload: bool) -> None:
    """Parse and COPY, a transaction a batch."""
    import msgspec
    import psycopg

    decoder = msgspec.json.Decoder()
    with psycopg.connect(url, autocommit=True) as connection, dump.open("rb") as file:
        connection.execute(TABLES)
        cursor = connection.cursor()
        while lines := list(islice(file, BATCH)):
            documents: list[dict[str, Any]] = [decoder.decode(line) for line in lines]
            with connection.transaction():
                if reload:
                    ids = [document["testSessionId"] for document in documents]
                    cursor.execute("DELETE FROM floor_sessions WHERE id = ANY(%s::uuid[])", (ids,))
                    cursor.execute("DELETE FROM floor_results WHERE session_id = ANY(%s::uuid[])", (ids,))
                with cursor.copy("COPY floor_sessions FROM STDIN") as into:
                    for document in documents:
                        metadata = document["metadata"]
                        into.write_row([document[name] for name in SESSION] + [metadata[name] for name in METADATA])
                with cursor.copy("COPY floor_results FROM STDIN") as into:
                    for document in documents:
                        id_ = document["testSessionId"]
                        for result in document["results"]:
                            into.write_row([id_, *(result[name] for name in RESULT)])


def main() -> None:
    """One floor, once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("floor", choices=("requests", "threads", "copy"))
    parser.add_argument("--api")
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--url")
    parser.add_argument("--reload", action="store_true")
    parser.add_argument("--concurrency", type=int, default=8)
    arguments = parser.parse_args()
    if arguments.floor == "copy":
        copy(arguments.dump, arguments.url, reload=arguments.reload)
    else:
        fetch(arguments.api, arguments.concurrency if arguments.floor == "threads" else 1)


if __name__ == "__main__":
    main()
