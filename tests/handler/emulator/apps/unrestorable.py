"""A function that cannot go on after its restore."""

from snapshot_restore_py import register_after_restore

from tests.handler.emulator.apps import routes


app = routes.app


def fail() -> None:
    msg = "the seed is gone"
    raise OSError(msg)


register_after_restore(fail)
