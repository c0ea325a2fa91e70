"""Whether a model of Strands said all that it had to say: its stream must tell why it ends.

Most of Strands' own models take a stream of their provider that simply stops for the end of the
answer. Any other model, a scripted one say, is believed.
"""

from collections.abc import Mapping
from typing import Any, Final

from strands.models import Model


class CutOffError(Exception):
    """The stream of a model ended before its answer did."""


_FORMATS: Final = ("format_chunk", "_format_chunk")
_NO_REASON: Final = (None, "", "end_turn")
"""What stands for a reason that the provider did not give: no provider of these models says `end_turn`."""


def watch(model: Model) -> None:
    """Have one of Strands' own models raise `CutOffError` where it would make up a reason."""
    name = next((name for name in _FORMATS if hasattr(model, name)), None)
    if name is None or not wanted_chunks(model):
        return
    format_chunk = getattr(model, name)

    def checked(event: Any, *args: Any, **kwargs: Any) -> Any:
        is_end = isinstance(event, Mapping) and event.get("chunk_type") == "message_stop"
        if is_end and event.get("data") in _NO_REASON:
            raise CutOffError("the model's stream ended without a reason")
        return format_chunk(event, *args, **kwargs)

    setattr(model, name, checked)


def wanted_chunks(model: Model) -> frozenset[str]:
    """Return the kinds of chunks without which the stream of a model was cut off.

    The model of the Responses API tells a usage only of a response that ended, and always.
    """
    if not _is_of_strands(model):
        return frozenset()
    is_of_responses = any(each.__name__ == "OpenAIResponsesModel" for each in type(model).__mro__)
    return frozenset({"messageStop", "metadata"} if is_of_responses else {"messageStop"})


def _is_of_strands(model: Model) -> bool:
    return any(
        each is not Model
        and issubclass(each, Model)
        and each.__module__.startswith("strands.models.")
        for each in type(model).__mro__
    )
