"""Cold start: a fresh interpreter to app and DynamoDB client ready, against the bare libraries'."""

import json
import os
import statistics
import subprocess
import sys

from tests.bench.report import Row


ROUNDS = 12

_BARE = """
import mangum, msgspec, boto3
from starlette.applications import Starlette
from starlette.routing import Route
boto3.client("dynamodb", region_name="eu-central-1")
"""
_OURS = """
import handler.buffered
"""
_TAIL = """
import json, sys, time
print(json.dumps([time.process_time(), sorted({"openai", "pydantic"} & set(sys.modules))]))
"""
_ENVIRONMENT = {
    "AWS_REGION": "eu-central-1",
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_LAMBDA_FUNCTION_NAME": "bench",
    "TABLE_NAME": "bench",
}


def measure() -> list[Row]:
    """Return the row; raises where a package is imported that must not be."""
    ours, bare = [], []
    for round_number in range(ROUNDS + 1):
        took = _milliseconds(_OURS), _milliseconds(_BARE)
        if round_number:
            ours.append(took[0])
            bare.append(took[1])
    what = "import and DynamoDB client ready (CPU)"
    return [Row(what, statistics.median(ours), statistics.median(bare), bar=1.15, unit="ms")]


def _milliseconds(code: str) -> float:
    environment = {**_inherited(), **_ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-c", code + _TAIL],
        env=environment,
        capture_output=True,
        check=True,
        text=True,
    )
    seconds, forbidden = json.loads(done.stdout.splitlines()[-1])
    if forbidden:
        raise AssertionError(forbidden)
    return float(seconds) * 1000


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}  # noqa: TID251
