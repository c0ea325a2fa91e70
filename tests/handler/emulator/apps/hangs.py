"""A function whose init does not end."""

import signal


signal.pause()
