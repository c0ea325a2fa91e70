"""A function with hooks around its snapshot; each request says what has run."""

from snapshot_restore_py import register_after_restore, register_before_snapshot
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


RAN = ["init"]


async def ran(_request: Request) -> JSONResponse:
    return JSONResponse(RAN)


register_before_snapshot(RAN.append, "before")
register_after_restore(RAN.append, "after")
app = Starlette(routes=[Route("/", ran)])
