"""What is known of Bedrock's models by their ids, where the Converse API is not the same for all.

A model whose id tells nothing (an application inference profile, say) is given only what all take.
Facts: the model cards of the Bedrock user guide, and its pages "Adaptive thinking", "Extended
thinking" and "Structured outputs".
"""

import re
from typing import Any, Final

from msgspec import Struct


NEWEST: Final = (99, 0)

_REGION: Final = re.compile(r"^(?:global|apac|us-gov|[a-z]{2})\.")
_CLAUDE_3: Final = re.compile(r"claude-(\d)(?:-(\d))?-[a-z]")
_CLAUDE: Final = re.compile(r"claude-[a-z]+-(\d{1,2})(?:-(\d{1,2}))?(?!\d)")

_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
_BUDGETS: Final = {"low": 2048, "medium": 8192, "high": 16_384, "xhigh": 24_576, "max": 24_576}
_SMALLEST_BUDGET: Final = 1024
_ANSWER_TOKENS: Final = 4096


class Reasoning(Struct, frozen=True):
    """How a model is asked to reason; nothing of it where it is not asked to."""

    fields: dict[str, Any] = {}
    """Additional fields of the request."""
    effort: str | None = None
    """`outputConfig.effort`"""
    max_tokens: int | None = None
    """The limit that goes with it, which holds both the reasoning and the answer."""
    has_sampling: bool = True
    """Whether a temperature may go with it."""


class Model(Struct, frozen=True):
    """A model, or an inference profile, by what its id tells."""

    model_id: str
    maker: str = ""
    name: str = ""

    @property
    def is_claude(self) -> bool:
        """Whether it is one of Anthropic's."""
        return self.maker == "anthropic"

    @property
    def version(self) -> tuple[int, int]:
        """The version of a Claude, such as (4, 7); of a name without one, the newest."""
        found = _CLAUDE_3.match(self.name) or _CLAUDE.match(self.name)
        return (int(found[1]), int(found[2] or 0)) if found else NEWEST

    @property
    def foundation_id(self) -> str:
        """The id of the model itself, which CountTokens wants in place of a profile's."""
        return f"{self.maker}.{self.name}" if self.maker else self.model_id

    @property
    def options(self) -> frozenset[str]:
        """The request fields that it can honour."""
        options = {"max_output_tokens", "text"}
        if self._has_sampling:
            options |= {"temperature", "top_p"}
        if self._reasons:
            options.add("reasoning")
        return frozenset(options)

    @property
    def has_one_sampler(self) -> bool:
        """Whether it takes a temperature or `top_p`, but not both."""
        return self.is_claude and self.version >= (4, 1)

    @property
    def has_strict_tools(self) -> bool:
        """Whether it is known to hold its calls to the schema of the function."""
        return self.is_claude and self.version >= (4, 5)

    @property
    def has_tool_choice_field(self) -> bool:
        """Whether it takes the `tool_choice` of its maker's own API, which can say more."""
        return self.is_claude

    @property
    def replays_reasoning(self) -> bool:
        """Whether signed reasoning comes from it and goes back to it."""
        return self.is_claude or not self.maker

    @property
    def has_prompt_caching(self) -> bool:
        """Whether it is known to take cache points."""
        return self.is_claude or self.name.startswith("nova-")

    @property
    def _has_sampling(self) -> bool:
        # Claude takes none since Opus 4.7, and Grok none at all.
        return self.maker != "xai" and not (self.is_claude and self.version >= (4, 7))

    @property
    def _reasons(self) -> bool:
        if self.is_claude:
            return self.version >= (3, 7)
        return self.name.startswith(("nova-2", "gpt-oss"))

    def reasoning(
        self, effort: str | None, *, max_tokens: int | None, is_shown: bool, is_bound: bool
    ) -> Reasoning:
        """Return how to ask for reasoning of this effort.

        `is_shown`: a summary is wanted; `is_bound`: the model must call a tool, or goes on after
        calls that it made without reasoning.
        """
        wanted = "low" if effort == "minimal" else effort
        if wanted not in _EFFORTS or not self._reasons:
            return Reasoning(max_tokens=max_tokens)
        if not self.is_claude:
            return self._others_reasoning(wanted, max_tokens)
        if self.version < (4, 6):
            # A model that has a budget reasons before all of its calls, or refuses the request.
            return Reasoning(max_tokens=max_tokens) if is_bound else _budget(wanted, max_tokens)
        thinking = {"type": "adaptive"}
        if self.version < (4, 7):
            wanted = "high" if wanted == "xhigh" else wanted
        elif is_shown:
            thinking["display"] = "summarized"  # which it leaves out otherwise
        return Reasoning({"thinking": thinking}, wanted, max_tokens, has_sampling=False)

    def _others_reasoning(self, effort: str, max_tokens: int | None) -> Reasoning:
        level = effort if effort in ("low", "medium") else "high"
        if self.name.startswith("gpt-oss"):
            return Reasoning({"reasoning_effort": level}, max_tokens=max_tokens)
        if level == "high" and max_tokens is not None:
            level = "medium"  # `high` goes without any limit
        config = {"type": "enabled", "maxReasoningEffort": level}
        return Reasoning(
            {"reasoningConfig": config}, max_tokens=max_tokens, has_sampling=level != "high"
        )


def model_of(model_id: str) -> Model:
    """Return what a model id, an inference profile's id, or an ARN of either tells."""
    last = model_id.rpartition("/")[2]
    maker, dot, name = _REGION.sub("", last, count=1).partition(".")
    return Model(model_id, maker, name) if dot else Model(model_id)


def _budget(effort: str, max_tokens: int | None) -> Reasoning:
    """Return a budget that leaves room for the answer; none where there is too little of it."""
    budget = _BUDGETS[effort]
    limit = budget + _ANSWER_TOKENS
    if max_tokens is not None:
        budget, limit = min(budget, max_tokens // 2), max_tokens
    if budget < _SMALLEST_BUDGET:
        return Reasoning(max_tokens=max_tokens)
    thinking = {"type": "enabled", "budget_tokens": budget}
    return Reasoning({"thinking": thinking}, max_tokens=limit, has_sampling=False)
