"""What `sam local start-api` must show: `BASE=http://127.0.0.1:3001 python -m tests.e2e.sam_scenarios`.

Prints a line for each scenario, and exits with 1 where one fails. With SAM's containers a history in
memory lasts as long as one warm container does, so each scenario needs one container or a table.
"""

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import openai
from openai import OpenAI


def a_chained_turn_remembers(client: OpenAI) -> None:
    first = client.responses.create(model="agent", input="My name is Ada.")
    second = client.responses.create(
        model="agent", input="What is my name?", previous_response_id=first.id
    )
    require(second.output_text == "Your name is Ada.", second.output_text)
    require(client.responses.retrieve(second.id) == second, "it is not read back as it was")


def a_stream_comes_whole(client: OpenAI) -> None:
    with client.responses.stream(model="agent", input="Hello!") as stream:
        events = [*stream]
        final = stream.get_final_response()
    said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    require(said.startswith("Hello! You said: “Hello!”."), said)
    require(final.output_text == said, final.output_text)
    numbers = [event.sequence_number for event in events]
    require(numbers == [*range(len(events))], str(numbers))


def what_is_deleted_or_wrong_is_an_error(client: OpenAI) -> None:
    created = client.responses.create(model="agent", input="Hello!")
    client.responses.delete(created.id)
    try:
        client.responses.retrieve(created.id)
    except openai.NotFoundError as error:
        require(created.id in error.message, error.message)
    else:
        require(False, "a deleted response is still there")
    try:
        client.responses.create(model="agent", input="Hi", temperature=3)
    except openai.BadRequestError as error:
        require(error.param == "temperature", str(error.param))
    else:
        require(False, "a wrong value was taken")
    try:
        client.with_options(api_key="dev-gamma").models.list()
    except openai.AuthenticationError as error:
        require(error.code == "invalid_api_key", str(error.code))
    else:
        require(False, "a wrong key was taken")


def require(is_so: bool, said: str) -> None:
    if not is_so:
        raise AssertionError(said)


SCENARIOS: Final[Mapping[str, Callable[[OpenAI], None]]] = MappingProxyType(
    {
        "create, and a chained turn that remembers": a_chained_turn_remembers,
        "stream, the whole of it": a_stream_comes_whole,
        "delete is 404, a wrong value 400, a wrong key 401": what_is_deleted_or_wrong_is_an_error,
    }
)


def main(root: str) -> int:
    """Try the scenarios at this server; return the exit code."""
    failed = 0
    # A container that starts may take its time, and sam answers 502 to what comes too early.
    with OpenAI(base_url=f"{root}/v1", api_key="dev-alpha", timeout=60) as client:
        for name, scenario in SCENARIOS.items():
            try:
                scenario(client)
            except Exception:  # noqa: BLE001 - told, and the others are tried
                failed += 1
                print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)  # noqa: T201
            else:
                print(f"ok    {name}", flush=True)  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(os.getenv("BASE", "http://127.0.0.1:3000")))
