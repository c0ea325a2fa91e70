"""Commands: what a channel's users type in place of a message to the agent, such as `/reset`.

A command is a turn like any other: it is run where the agent would be, so that it streams, is stored
and is followed as the agent's turns are.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from msgspec import Struct
from starlette.requests import Request

from channel.agent import AgentEvent, SessionReset, TurnError
from channel.auth import Caller, caller_of
from channel.contract import (
    COMMAND_NAME,
    ChannelCommand,
    ChannelCommandContext,
    ChannelContext,
    ChannelRequest,
)
from channel.faults import HookError
from channel.http import JSONReply
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.items import Item


__all__ = [
    "COMMAND",
    "HELP",
    "RESET",
    "ChannelCommand",
    "ChannelCommandContext",
    "CommandError",
    "Commands",
    "by_name",
]

COMMAND: Final = "message.command"
"""The operation of a `ChannelRequest` that a command answers."""

_TYPED: Final = re.compile(rf"/({COMMAND_NAME})(?:\s|\Z)")


class CommandError(HookError):
    """A command failed for a reason that is not the client's."""


def by_name(commands: Iterable[ChannelCommand]) -> dict[str, ChannelCommand]:
    """Return the commands by name; raises `ValueError` where two different ones have the same."""
    named: dict[str, ChannelCommand] = {}
    for command in commands:
        if named.setdefault(command.name, command) is not command:
            msg = f"there are two different commands /{command.name}"
            raise ValueError(msg)
    return named


class Typed(NamedTuple):
    """What looks like a command: its name without the slash, and the text after it."""

    name: str
    arguments: str


def typed(items: Sequence[Item]) -> Typed | None:
    """Return the command that the last of the items may be: a user's message of one text alone."""
    last = items[-1] if items else {}
    if last.get("type") != "message" or last.get("role") != "user":
        return None
    match last.get("content"):
        case str(text) | [{"type": "input_text", "text": str(text)}]:
            found = _TYPED.match(text)
            return found and Typed(found[1], text[found.end() :].strip())
    return None


class Commands:
    """The commands of one channel, and who may use them."""

    def __init__(self, context: ChannelContext, commands: Mapping[str, ChannelCommand]) -> None:
        """Take them by name."""
        self._context = context
        self._commands = commands

    def has(self, asked: ChannelRequest, text: Mapping[str, Any] | None = None) -> bool:
        """Return whether the request is a command; `text` is what it says of the reply's form.

        None is where a client parses the reply: it would find no JSON.
        """
        if text is not None and text["format"]["type"] != "text":
            return False
        return self._found(asked) is not None

    def start(self, asked: ChannelRequest) -> Callable[[], AsyncIterator[AgentEvent]] | None:
        """Return what starts the command of a request; None where it is none of this caller's."""
        found = self._found(asked)
        if found is None:
            return None
        return partial(self._run, asked, *found)

    async def listed(self, request: Request) -> JSONReply:
        """Reply with the commands that the caller may use."""
        usable = self._usable(caller_of(request.scope))
        data = [
            {"object": "command", "name": command.name, "description": command.description}
            for command in usable
        ]
        return JSONReply({"object": "list", "data": data})

    def _found(self, asked: ChannelRequest) -> tuple[ChannelCommand, str] | None:
        given = typed(asked.input)
        command = given and self._commands.get(given.name)
        if not given or not command or not _is_for(command, asked.caller):
            return None
        return command, given.arguments

    def _usable(self, caller: Caller) -> list[ChannelCommand]:
        return [command for command in self._commands.values() if _is_for(command, caller)]

    async def _run(
        self, asked: ChannelRequest, command: ChannelCommand, arguments: str
    ) -> AsyncIterator[AgentEvent]:
        """Run a command as an agent is run; what goes away cancels it, and waits for its end."""
        said: asyncio.Queue[AgentEvent | None] = asyncio.Queue()
        task = asyncio.create_task(self._handle(asked, command, arguments, said))
        task.add_done_callback(lambda _: said.put_nowait(None))
        try:
            while (event := await said.get()) is not None:
                yield event
                said.task_done()
            await task
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # seen: it was raised above, or nobody is there to see it

    async def _handle(
        self,
        asked: ChannelRequest,
        command: ChannelCommand,
        arguments: str,
        said: "asyncio.Queue[AgentEvent | None]",
    ) -> None:
        try:
            usable = MappingProxyType(by_name(self._usable(asked.caller)))
            await command.handle(_Given(asked, arguments, usable, self._context, said))
        except (RequestError, TurnError):
            raise
        except (Exception, SystemExit) as error:  # the latter would end everybody else's turn, too
            msg = f"the command /{command.name} failed"
            # With its places, since it is this error that is logged.
            raise CommandError(msg).with_traceback(error.__traceback__) from error


def _is_for(command: ChannelCommand, caller: Caller) -> bool:
    return command.is_for is None or command.is_for(caller)


class _Given(Struct, frozen=True):
    """The `ChannelCommandContext` of one run."""

    request: ChannelRequest
    arguments: str
    commands: Mapping[str, ChannelCommand]
    host: ChannelContext
    said: "asyncio.Queue[AgentEvent | None]"

    async def reply(self, text: str, /) -> None:
        await self._say(text)

    async def reset_session(self) -> None:
        request = self.request
        key = request.session.isolation_key if request.session is not None else None
        if key is not None and request.session_mode != "disabled":
            await self.host.reset_session(request.caller.keys, key)
        await self._say(SessionReset())

    async def _say(self, event: AgentEvent) -> None:
        self.said.put_nowait(event)
        await self.said.join()  # it is taken: who reads slowly slows the command down, too


async def _reset(context: ChannelCommandContext) -> None:
    await context.reset_session()
    await context.reply("Started over: what was said before is not remembered any more.")
    if any(item.get("role") == "assistant" for item in context.request.input):
        await context.reply(" This client sends it again, though: begin a new chat there as well.")


async def _help(context: ChannelCommandContext) -> None:
    lines = [f"- /{name}: {each.description}" for name, each in context.commands.items()]
    await context.reply("\n".join(lines))


RESET: Final = ChannelCommand(
    "reset", "Start over: what was said before is not remembered any more.", _reset
)
HELP: Final = ChannelCommand("help", "List the commands.", _help)
