"""What an agent keeps itself lies in the local server's table, too, apart for each tenant."""

from openai import OpenAI

from tests.e2e import server


def test_an_agent_finds_the_table_of_the_local_server() -> None:
    with server.running(AGENT="tests.e2e.own_table_agent:agent") as root:
        told = []
        for key in ("dev-alpha", "dev-alpha", "dev-beta"):
            with OpenAI(base_url=f"{root}/v1", api_key=key) as client:
                told.append(client.responses.create(model="agent", input="hi").output_text)

    assert told == ["0 before", "1 before", "0 before"]
