"""A function whose init ends the process."""

import sys


sys.stdout.write("no more of this\n")
sys.exit(7)
