"""`handler.takeover.handler`: where it is imported by Lambda's own runtime, the streaming loop takes over.

The second way to mount the loop, for a zip whose exec bits got lost: set `Handler` to this and leave
`AWS_LAMBDA_EXEC_WRAPPER` out. The import never returns, so the managed runtime never asks for an
invocation of its own.
"""

from handler.mount import handler_from_environment
from handler.streaming import take_over


handler = take_over(handler_from_environment())
