"""`handler.buffered.handler`: the app of the settings, as what Lambda calls; importing it is the init."""

from handler.app import app_from_environment
from handler.mount import LambdaHandler


handler = LambdaHandler(app_from_environment())
