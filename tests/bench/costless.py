"""A classifier and a pict-rs that cost next to nothing, so that what is measured is the gate.

`python -m tests.bench.costless PORT`: `/v1/…` is the classifier, the rest pict-rs. The classifier finds what
is to be held in files whose last byte is `HOLD`.
"""

from __future__ import annotations

import sys

from aiohttp import web

FILE = bytes(5 * 1024 * 1024)
HOLD = b"H"
_FORMATS = {"image/png": "png", "image/jpeg": "jpeg"}


async def classify(request: web.Request) -> web.Response:
    last = b""
    async for chunk in request.content.iter_any():
        last = chunk
    score = 0.9 if last.endswith(HOLD) else 0.0
    signals = {"sexual": score, "minor": score}
    media = {"format": _FORMATS[request.content_type], "width": 1600, "height": 1200, "frames_scored": 1}
    frames = [{"index": 0, "signals": signals}]
    return web.json_response(
        {"ensemble": "costless", "version": "1", "media": media, "signals": signals, "frames": frames}
    )


async def info(_: web.Request) -> web.Response:
    return web.json_response({"signals": ["sexual", "minor"]})


async def upload(request: web.Request) -> web.Response:
    async for _ in request.content.iter_any():
        pass
    return web.json_response(
        {"files": [{"delete_token": "t", "details": {}, "file": "a.jpeg"}], "msg": "ok"}, status=201
    )


async def original(_: web.Request) -> web.Response:
    return web.Response(body=FILE, content_type="image/jpeg")


def main() -> None:
    """Serves until it is told to stop."""
    application = web.Application(client_max_size=2**30)
    application.add_routes(
        [
            web.post("/v1/classify", classify),
            web.get("/v1/info", info),
            web.post("/image", upload),
            web.get("/image/original/{alias}", original),
        ]
    )
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
