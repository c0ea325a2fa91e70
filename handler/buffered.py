"""`handler.buffered.handler`: the app of the settings, as what Lambda calls; importing it is the init."""

from handler.mount import handler_from_environment


handler = handler_from_environment()
