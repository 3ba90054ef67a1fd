"""The worst that people, networks, disks and Checkly can do to this program, and what must be left of it.

Every test here puts a warehouse through hell and then compares it, row by row, with one that was exported in
peace (`harness.same_rows`). CHECKLY_ETL_TORTURE says how often: 2 in `make test` and `.ci/run`, of a few only
(`conftest.IN_SHORT`), 50 in `make torture`, which is 200 kills, 10,000 documents, a week of passes.
"""
