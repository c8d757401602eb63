"""The least that a gate in aiohttp can do: one request to the classifier, one to pict-rs, and no thought.

`python -m tests.bench.relay PORT UPSTREAM`. What the gate adds beyond this is its own work.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

_JPEG = {"Content-Type": "image/jpeg"}


def application(upstream: str) -> web.Application:
    session = web.AppKey("session", aiohttp.ClientSession)

    async def upload(request: web.Request) -> web.Response:
        body = await request.read()
        async with request.app[session].post(f"{upstream}/v1/classify", data=body, headers=_JPEG) as look:
            await look.json()
        async with request.app[session].post(f"{upstream}/image", data=body, headers=_JPEG) as stored:
            return web.Response(status=stored.status, body=await stored.read())

    async def sessions(app: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession() as app[session]:
            yield

    made = web.Application(client_max_size=2**30)
    made.cleanup_ctx.append(sessions)
    made.add_routes([web.post("/image", upload)])
    return made


if __name__ == "__main__":
    web.run_app(
        application(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None
    )
