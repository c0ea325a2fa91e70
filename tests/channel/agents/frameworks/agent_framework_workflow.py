"""A workflow of Microsoft Agent Framework: one agent with a scripted chat client."""

from collections.abc import Callable

from agent_framework import Agent, Workflow, WorkflowBuilder

from tests.channel.agents.frameworks.agent_framework import ScriptedClient, weather
from tests.channel.agents.scripts import Script


_NO_OPTIONS = "a run of a workflow takes no options of a model call: each of its agents has its own"


class _Workflow:
    unsupported: dict[str, str] = {  # noqa: RUF012 - read only
        "the_answer_has_the_form_that_the_client_asks_for": _NO_OPTIONS,
        "limits_of_the_request_reach_the_model": _NO_OPTIONS,
    }

    def agent(self, script: Script) -> tuple[Callable[[], Workflow], ScriptedClient]:
        client = ScriptedClient(script)

        def build() -> Workflow:
            agent = Agent(client, "Be kind.", name="kind", tools=[weather])
            return WorkflowBuilder(name="scripted", start_executor=agent).build()

        return build, client


SCRIPTED = _Workflow()
