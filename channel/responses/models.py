"""`/models`: the one model that there is, since there is one agent."""

from typing import Any

from starlette.requests import Request

from channel.http import JSONReply
from channel.responses.protocol.errors import RequestError


class Models:
    """The routes of the model list.

    Codex names itself by `client_version` in the query, and reads `models` instead of `data`.
    """

    def __init__(self, name: str, created: int, max_input_tokens: int | None = None) -> None:
        """Show the model by its name, as made then (Unix seconds)."""
        self._model = {"id": name, "object": "model", "created": created, "owned_by": "owner"}
        self._codex = codex_model(name, max_input_tokens)

    async def list_all(self, request: Request) -> JSONReply:
        listed: dict[str, Any] = {"object": "list", "data": [self._model]}
        if "client_version" in request.query_params:
            listed["models"] = [self._codex]
        return JSONReply(listed)

    async def retrieve(self, request: Request) -> JSONReply:
        name = request.path_params["model"]
        if name != self._model["id"]:
            msg = f"The model '{name}' does not exist."
            raise RequestError(msg, param="model", code="model_not_found", status=404)
        return JSONReply(self._model)


def codex_model(name: str, max_input_tokens: int | None) -> dict[str, Any]:
    """Return the model as Codex reads it (`ModelInfo` of codex-rs, as of autumn 2026).

    All fields that it requires, with the values that it takes for a model unknown to it; but for
    `base_instructions`: versions that require it do without this whole entry, and use their own
    instructions rather than none.
    """
    window = {} if max_input_tokens is None else {"context_window": max_input_tokens}
    return {
        "slug": name,
        "display_name": name,
        "description": None,
        "supported_reasoning_levels": [],
        "shell_type": "default",
        "visibility": "list",
        "supported_in_api": True,
        "priority": 1,
        "upgrade": None,
        "supports_reasoning_summaries": False,
        "support_verbosity": False,
        "default_verbosity": None,
        "apply_patch_tool_type": None,
        "truncation_policy": {"mode": "bytes", "limit": 10_000},
        "supports_parallel_tool_calls": True,
        "experimental_supported_tools": [],
        **window,
    }
