"""Errors of an OpenAI-compatible upstream as what a client may know of them: never its text, nor its account.

Whose fault a refusal is decides: of what the caller has sent, the caller learns the field and a code
that is OpenAI's own; of the key, the model's name or the upstream itself it learns nothing.
"""

import re
from types import MappingProxyType
from typing import Final

from channel.agent import TurnError
from channel.agents.provider_errors import turn_error_of


class UpstreamError(Exception):
    """A failure that an upstream told in its stream, or that the stream shows; the text stays hidden.

    It has the attributes by which errors of model providers are known.
    """

    def __init__(
        self, message: str, *, code: str = "", status: int | None = None, param: str = ""
    ) -> None:
        """Take what the upstream said."""
        super().__init__(message)
        self.code = code
        self.status_code = status
        self.param = param


CUT_OFF: Final = "the stream ended before the answer did"

_UNAVAILABLE: Final = "The model is not available now. Please try again later."
_REJECTED: Final = frozenset({400, 413, 422})
_OURS: Final = frozenset({"include", "model", "store", "stream", "stream_options"})
"""Fields that this server chose."""
_OUR_CODES: Final = re.compile(r"quota|billing|model_not_found|unsupported_model|api_key")
_STATUSES: Final = MappingProxyType(
    {
        "rate_limit_exceeded": 429,
        "too_many_requests": 429,
        "server_error": 503,
        "internal_error": 503,
        "internal_server_error": 503,
        "overloaded_error": 503,
        "server_is_overloaded": 503,
        "slow_down": 503,
        "service_unavailable": 503,
    }
)
"""What a code that comes in a stream would be as an HTTP status."""

_FIELDS: Final = MappingProxyType(
    {
        "frequency_penalty": "frequency_penalty",
        "input": "input",
        "instructions": "instructions",
        "max_completion_tokens": "max_output_tokens",
        "max_output_tokens": "max_output_tokens",
        "max_tokens": "max_output_tokens",
        "max_tool_calls": "max_tool_calls",
        "messages": "input",
        "parallel_tool_calls": "parallel_tool_calls",
        "presence_penalty": "presence_penalty",
        "prompt_cache_key": "prompt_cache_key",
        "reasoning": "reasoning",
        "reasoning_effort": "reasoning.effort",
        "response_format": "text.format",
        "service_tier": "service_tier",
        "temperature": "temperature",
        "text": "text",
        "tool_choice": "tool_choice",
        "tools": "tools",
        "top_p": "top_p",
        "user": "user",
        "verbosity": "text.verbosity",
    }
)
"""The caller's name of each field that an upstream may complain of."""

_CODES: Final = frozenset(
    {
        "content_filter", "content_policy_violation", "context_length_exceeded", "empty_image_file",
        "failed_to_download_image", "image_content_policy_violation", "image_file_not_found",
        "image_file_too_large", "image_parse_error", "image_too_large", "image_too_small",
        "integer_above_max_value", "integer_below_min_value", "invalid_base64_image",
        "invalid_function_parameters", "invalid_image", "invalid_image_format", "invalid_image_mode",
        "invalid_image_url", "invalid_json_schema", "invalid_prompt", "invalid_type", "invalid_value",
        "missing_required_parameter", "string_above_max_length", "unsupported_image_media_type",
        "unsupported_parameter", "unsupported_value",
    }
)  # fmt: skip
"""OpenAI's codes for what is wrong with a request."""


def upstream_error(told: object) -> UpstreamError:
    """Return the error that an event or a chunk tells, in any of the shapes that there are."""
    if not isinstance(told, dict):
        return UpstreamError(str(told))
    code, kind, param = told.get("code"), told.get("type"), told.get("param")
    # Gateways put the HTTP status where a code belongs.
    status = int(str(code)) if str(code).isdecimal() else None
    name = code if isinstance(code, str) else kind if isinstance(kind, str) else ""
    return UpstreamError(
        str(told.get("message") or ""),
        code=name,
        status=status or _STATUSES.get(name),
        param=param if isinstance(param, str) else "",
    )


def known_error(error: Exception) -> TurnError | None:
    """Return what a client may know of an upstream's error; None where it is nobody's business.

    Then it is this server's fault (500): its key, its model, its quota, or something unheard of.
    """
    code, param = _text(error, "code"), _text(error, "param")
    field = re.split(r"[.\[]", param)[0]
    if _OUR_CODES.search(code) or field in _OURS:
        return None
    if (known := turn_error_of(error)) is not None:
        return known
    status = getattr(error, "status_code", None)
    if status in _REJECTED or (status is None and code in _CODES):
        return _rejection(code if code in _CODES else "invalid_prompt", _FIELDS.get(field))
    return None


def unavailable() -> TurnError:
    """Return the error of an upstream that cannot be reached, or does not answer."""
    return TurnError(_UNAVAILABLE, code="server_error", status=503)


def _rejection(code: str, field: str | None) -> TurnError:
    message = (
        f"The model does not take '{field}' as it is."
        if field
        else "The model does not take this request."
    )
    return TurnError(message, code=code, status=400, param=field)


def _text(error: Exception, name: str) -> str:
    value = getattr(error, name, None)
    return value if isinstance(value, str) else ""
