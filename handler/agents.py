"""The agent that the setting `AGENT` names: one of the user's, a Bedrock model, or an OpenAI-compatible upstream."""

from collections.abc import Awaitable, Callable
from functools import partial
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
    from channel.agents.bedrock import converse_agent
    from infra.bedrock import make_bedrock_client

    region = settings.bedrock_region or settings.region
    client = make_bedrock_client(region, settings.bedrock_endpoint)
    if settings.is_snap_start:
        # Its connections are not the restored environment's; the next call makes new ones.
        from snapshot_restore_py import register_before_snapshot

        register_before_snapshot(client.close)
    return converse_agent(
        model_id,
        client,
        instructions=settings.agent_instructions,
        guardrail=settings.bedrock_guardrail,
        caching=settings.bedrock_prompt_caching,
    )


def _upstream(settings: Settings, reference: str) -> Agent:
    from channel.agents.openai_wire.reference import OPENAI, parse_reference

    given = parse_reference(reference)
    api_key: str | Callable[[], Awaitable[str]] | None = settings.openai_api_key
    if api_key is None and (name := settings.openai_api_key_secret) is not None:
        from infra.secrets import Secret, make_secrets_client

        make_client = partial(make_secrets_client, name, settings.region)
        api_key = Secret(name, make_client, field="OPENAI_API_KEY")
    if api_key is None and given.base_url == OPENAI:
        msg = f"AGENT is {reference!r}, but neither OPENAI_API_KEY nor OPENAI_API_KEY_SECRET is set"
        raise AgentReferenceError(msg)
    try:
        from channel.agents.openai_upstream import upstream_agent
    except ModuleNotFoundError as error:
        msg = (
            f"AGENT is {reference!r}, but it needs the module {error.name!r}, which is not installed: "
            "put openai into agent/requirements.txt, or pip install openai"
        )
        raise AgentReferenceError(msg) from error
    return upstream_agent(
        given.model,
        given.base_url,
        api_key=api_key,
        wire="chat" if given.is_chat else "auto",
        instructions=settings.agent_instructions,
    )
