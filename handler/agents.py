"""The agent that the setting `AGENT` names: one of the user's, a Bedrock model, or an OpenAI-compatible upstream."""

from typing import Final

from channel.agent import Agent
from channel.loading import AgentReferenceError, load_agent
from infra.settings import DEFAULT_AGENT, Settings, SettingsError


BEDROCK: Final = "bedrock:"
UPSTREAM: Final = ("openai:", "openai-chat:")


def agent_of(settings: Settings) -> Agent:
    """Return the agent; raises `SettingsError` with a sentence that says how to write the setting."""
    reference = settings.agent
    try:
        if reference == DEFAULT_AGENT:
            from channel.agents.demo import demo_agent

            return demo_agent(delay_s=settings.demo_delay_s or 0.0)
        if reference.startswith(BEDROCK):
            return _bedrock(settings, reference.removeprefix(BEDROCK))
        if reference.startswith(UPSTREAM):
            return _upstream(settings, reference)
        return load_agent(reference)
    except AgentReferenceError as error:
        msg = f"The setting {error}."
        raise SettingsError(msg) from error


def _bedrock(settings: Settings, model_id: str) -> Agent:
    raise NotImplementedError


def _upstream(settings: Settings, reference: str) -> Agent:
    raise NotImplementedError
