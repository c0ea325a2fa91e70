"""Commands: what a channel's users type in place of a message to the agent, such as `/reset`.

A command is a turn like any other: it is run where the agent would be, so that it streams, is stored
and is followed as the agent's turns are.
"""

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from enum import Enum, auto
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
from channel.hooks import as_turn_error
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

    def found(
        self, caller: Caller, items: Sequence[Item], text: Mapping[str, Any] | None = None
    ) -> ChannelCommand | None:
        """Return the command that the items end with, where it is this caller's.

        `text` is what the request says of the reply's form: where a client parses that, there is no
        command, since it would find no JSON. Raises `CommandError` where `is_for` fails.
        """
        if text is not None and text["format"]["type"] != "text":
            return None
        found = self._found(caller, items)
        return found and found[0]

    def start(
        self, asked: ChannelRequest, start_agent: Callable[[], AsyncIterator[AgentEvent]]
    ) -> AsyncIterator[AgentEvent]:
        """Start the command of a request, or the agent where it is none of this caller's any more.

        Raises `CommandError` where `is_for` fails.
        """
        found = self._found(asked.caller, asked.input)
        return start_agent() if found is None else self._run(asked, *found)

    async def listed(self, request: Request) -> JSONReply:
        """Reply with the commands that the caller may use."""
        usable = self._usable(caller_of(request.scope))
        data = [
            {"object": "command", "name": command.name, "description": command.description}
            for command in usable
        ]
        return JSONReply({"object": "list", "data": data})

    def _found(self, caller: Caller, items: Sequence[Item]) -> tuple[ChannelCommand, str] | None:
        given = typed(items)
        command = given and self._commands.get(given.name)
        if not given or not command or not _is_for(command, caller):
            return None
        return command, given.arguments

    def _usable(self, caller: Caller) -> list[ChannelCommand]:
        return [command for command in self._commands.values() if _is_for(command, caller)]

    async def _run(
        self, asked: ChannelRequest, command: ChannelCommand, arguments: str
    ) -> AsyncIterator[AgentEvent]:
        """Run a command as an agent is run; what goes away cancels it, and waits for its end."""
        replies = _Replies()
        task = asyncio.create_task(self._handle(asked, command, arguments, replies))
        task.add_done_callback(lambda _: replies.end())
        try:
            while (event := await replies.next()) is not _End.END:
                yield event
                replies.take()
            await task
        finally:
            replies.close()  # first: a handler that still replies as it is cancelled is to end
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # seen: it was raised above, or nobody is there to see it

    async def _handle(
        self,
        asked: ChannelRequest,
        command: ChannelCommand,
        arguments: str,
        replies: "_Replies",
    ) -> None:
        try:
            usable = MappingProxyType(by_name(self._usable(asked.caller)))
            await command.handle(_Given(asked, arguments, usable, self._context, replies))
        except TurnError:
            raise
        except RequestError as error:
            raise as_turn_error(error) from error
        except (Exception, SystemExit) as error:  # the latter would end everybody else's turn, too
            msg = f"the command /{command.name} failed"
            # With its places, since it is this error that is logged.
            raise CommandError(msg).with_traceback(error.__traceback__) from error
        if command.resets and not replies.have_reset:
            msg = f"the command /{command.name} has `resets`, and did not call reset_session"
            raise CommandError(msg)


def _is_for(command: ChannelCommand, caller: Caller) -> bool:
    if command.is_for is None:
        return True
    try:
        answer: object = command.is_for(caller)
    except (Exception, SystemExit) as error:
        msg = f"is_for of the command /{command.name} raised {type(error).__qualname__}"
        raise CommandError(msg) from error
    if isinstance(answer, bool):
        return answer
    if inspect.iscoroutine(answer):
        answer.close()  # it is not awaited, and nobody is to be warned of that
    msg = f"is_for of the command /{command.name} returned {type(answer).__qualname__}, not bool"
    raise CommandError(msg)


class _End(Enum):
    END = auto()


class _Replies:
    """What a command says, until that is taken; once they are closed, nothing waits for that."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[AgentEvent | _End] = asyncio.Queue()
        self._unfinished = 0
        self._is_closed = False
        self.have_reset = False

    async def say(self, event: AgentEvent) -> None:
        if self._is_closed:
            await asyncio.sleep(0)  # a task that replies for ever must not stop everybody else
            return
        self._put(event)
        await self._said.join()  # it is taken: who reads slowly slows the command down, too

    async def next(self) -> "AgentEvent | _End":
        return await self._said.get()

    def take(self) -> None:
        self._unfinished -= 1
        self._said.task_done()

    def end(self) -> None:
        self._put(_End.END)

    def close(self) -> None:
        self._is_closed = True
        while self._unfinished:
            self.take()

    def _put(self, event: "AgentEvent | _End") -> None:
        self._said.put_nowait(event)
        self._unfinished += 1


class _Given(Struct, frozen=True):
    """The `ChannelCommandContext` of one run."""

    request: ChannelRequest
    arguments: str
    commands: Mapping[str, ChannelCommand]
    host: ChannelContext
    replies: _Replies

    async def reply(self, text: str, /) -> None:
        if not isinstance(text, str):
            msg = f"reply() takes a str, not {type(text).__qualname__}"
            raise TypeError(msg)
        await self.replies.say(text)

    async def reset_session(self) -> None:
        for key in _sessions_of(self.request):
            await self.host.reset_session(self.request.caller.keys, key)
        self.replies.have_reset = True
        await self.replies.say(SessionReset())


def _sessions_of(request: ChannelRequest) -> Iterable[str]:
    """Return the keys of the sessions that a request is in: its own, and the chat that it is said in.

    A conversation is no such session, and its turns are beside those of the chat.
    """
    if request.session is None or request.session_mode == "disabled":
        return ()
    if "conversation_id" in request.attributes:
        return ()
    keys = request.session.isolation_key, request.caller.keys.chat_key
    return dict.fromkeys(key for key in keys if key is not None)


async def _reset(context: ChannelCommandContext) -> None:
    await context.reset_session()
    await context.reply("Started over: what was said before is not remembered any more.")
    if any(item.get("role") == "assistant" for item in context.request.input):
        await context.reply(" This client sends it again, though: begin a new chat there as well.")


async def _help(context: ChannelCommandContext) -> None:
    lines = [f"- /{name}: {each.description}" for name, each in context.commands.items()]
    await context.reply("\n".join(lines))


RESET: Final = ChannelCommand(
    "reset",
    "Start over: what was said before is not remembered any more.",
    _reset,
    resets=True,
)
HELP: Final = ChannelCommand("help", "List the commands.", _help)
