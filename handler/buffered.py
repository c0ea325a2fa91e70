"""`handler.buffered.handler`: what Lambda calls where whole replies are wanted; importing it is the init."""

from handler.app import app_from_environment
from handler.mount import BufferedMount


handler = BufferedMount(app_from_environment())
