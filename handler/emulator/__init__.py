"""A function URL on 127.0.0.1, with Lambda's Runtime API behind it: for tests, and for `lambda-responses url`.

`async with FunctionUrl(Function(handler="my.module.app")) as url:` serves at `url.root`. None of this
is deployed.
"""

from handler.emulator.function_url import FunctionUrl
from handler.emulator.options import Faults, Function


__all__ = ["Faults", "Function", "FunctionUrl"]
