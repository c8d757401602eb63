"""A small stand-in for pict-rs: `python -m tests.pictrs --port 8081 --store FOLDER`.

For machines without the real one, and for faults that the real one does not play: `--slow SECONDS`,
`--cut-off BYTES`, `--lie`. It keeps files as they come (but for processing steps and EXIF orientation), and
`tests/test_recordings.py` holds its answers to those of the real 0.5 and 0.6.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import http.client
import io
import json
import re
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pillow_jxl  # noqa: F401 — teaches Pillow the format
from aiohttp import web
from PIL import Image, ImageFilter, ImageOps

from proxy.aliases import alias_key
from proxy.media import Format, Kind, Measure, Size, measure, processed_size, recognise
from proxy.media.geometry import STEPS
from proxy.media.signatures import PNG

_FORMAT_BYTES = {
    "apng": 0,
    "avif": 1,
    "gif": 2,
    "jpeg": 5,
    "jxl": 6,
    "png": 7,
    "webp": 8,
    "mp4": 9,
    "webm": 10,
}
_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "avif", "jxl", "gif", "apng")
_WRITERS = {"jpg": "JPEG", "apng": "PNG"}
_NUMBERS = {
    "max_width": 2**16,
    "max_height": 2**16,
    "max_area": 2**32,
    "max_frame_count": 2**32,
    "max_file_size": 2**64,
}
_ALLOWS = {"allow_image": Kind.IMAGE, "allow_animation": Kind.ANIMATION, "allow_video": Kind.VIDEO}
_NO_ALIAS = "data did not match any variant of untagged enum AliasQuery"
_NO_SOURCE = "data did not match any variant of untagged enum ProcessSource"


_MALFORMED = range(-1, -1)
_LIMITS = """
{"external_validation": null, "external_validation_timeout": 30, "max_file_size": 1,
"process_timeout": 30, "filters": ["blur", "crop", "identity", "resize", "thumbnail"],
"retention": {"variants": "7d", "proxy": "7d"}, "magick": {"max_width": 10000, "max_height":
10000, "max_area": 20000, "memory": 256, "map": 512, "disk": 8192}, "image": {"max_width": 10000,
"max_height": 10000, "max_area": 40000000, "max_file_size": 40}, "animation": {"max_width": 1920,
"max_height": 1920, "max_area": 2073600, "max_file_size": 40, "max_frame_count": 900}, "video":
{"enable": true, "allow_audio": false, "max_width": 3840, "max_height": 3840, "max_area": 8294400,
"max_file_size": 40, "max_frame_count": 900, "quality": {"crf_max": 32}}}
"""  # as recorded from 0.6.0-rc.6


class Problem(Exception):
    """An answer that is an error: 0.5's status, code and message, and 0.6's status where it differs."""

    def __init__(self, status: int, code: str, msg: str, *, status_06: int | None = None) -> None:
        super().__init__(code)
        self.status, self.code, self.msg, self.status_06 = status, code, msg, status_06 or status


@dataclass
class Stored:
    """One file: where its bytes are, what it is, its aliases with their delete tokens."""

    path: Path
    details: dict[str, Any]
    raw_key: bytes
    at: float
    aliases: dict[str, str] = field(default_factory=dict)
    variants: dict[tuple[Any, ...], tuple[bytes, str, Size]] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()

    @property
    def etag(self) -> str:
        return f'"{base64.b64encode(self.raw_key).decode().rstrip("=")}"'

    @property
    def slug(self) -> str:
        return base64.urlsafe_b64encode(self.raw_key).decode().rstrip("=")


class StandIn:
    """The store and the routes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.is_06 = options.dialect == "0.6"
        self.files: dict[bytes, Stored] = {}
        self.by_alias: dict[bytes, Stored] = {}
        self.uploads: dict[str, Any] = {}
        self.proxied: dict[str, Stored] = {}
        self.proxied_as: dict[str, str] = {}
        self.not_found: Stored | None = None

    def application(self) -> web.Application:
        application = web.Application(client_max_size=2**30, middlewares=[self.border])
        route = application.router.add_route
        route("GET", "/healthz", self.healthz)
        route("POST", "/image", self.upload)
        route("POST", "/image/backgrounded", self.upload_backgrounded)
        route("GET", "/image/backgrounded/claim", self.claim)
        route("GET", "/image/download", self.download)
        route("GET", "/image/original/{alias:[^/]+}", self.original)
        route("HEAD", "/image/original/{alias:[^/]+}", self.original)
        route("GET", "/image/original", self.original)
        route("HEAD", "/image/original", self.original)
        route("GET", "/image/process.{ext}", self.process)
        route("HEAD", "/image/process.{ext}", self.process)
        route("GET", "/image/process_backgrounded.{ext}", self.process_later)
        route("GET", "/image/details/original/{alias:[^/]+}", self.details)
        route("GET", "/image/details/original", self.details)
        route("GET", "/image/details/process.{ext}", self.details_process)
        route("GET", "/image/blurhash", self.blurhash)
        route("DELETE", "/image/delete/{token}/{alias:[^/]+}", self.delete)
        route("GET", "/image/delete/{token}/{alias:[^/]+}", self.delete)
        route("POST", "/internal/import", self.import_file)
        route("POST", "/internal/delete", self.delete_by_key)
        route("POST", "/internal/purge", self.purge)
        route("GET", "/internal/aliases", self.aliases)
        route("GET", "/internal/identifier", self.identifier)
        route("GET", "/internal/hashes", self.hashes)
        route("DELETE", "/internal/variants", self.variants)
        route("POST", "/internal/set_not_found", self.set_not_found)
        route("POST", "/internal/prune_missing", self.prune_missing)
        route("POST", "/internal/export", self.export)
        if self.is_06:
            route("GET", "/internal/limits", self.limits)
        return application

    # --- shapes ---

    @web.middleware
    async def border(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Keys, faults and errors."""
        if self.options.slow:
            await asyncio.sleep(self.options.slow)
        try:
            given = request.headers.get("X-Api-Token")
            if request.path.startswith("/internal") and given != self.options.api_key:
                raise Problem(401, "invalid-api-token", "Invalid API Key")
            self.check_deadline(request)
            if self.options.lie and request.path in ("/image", "/internal/import"):
                return web.Response(
                    status=201, text="<html>not what you think</html>", content_type="text/html"
                )
            response: web.StreamResponse = await handler(request)
            return response
        except Problem as problem:
            status = problem.status_06 if self.is_06 else problem.status
            return self.json(status, {"code": problem.code, "msg": problem.msg}, with_msg=False)
        except web.HTTPException as error:
            if error.status == 405 and request.path not in ("/image", "/image/backgrounded", "/healthz"):
                allowed = ", ".join(sorted(getattr(error, "allowed_methods", ())))
                return web.Response(status=405, headers={"Allow": allowed})
            return web.Response(status=404)

    def check_deadline(self, request: web.Request) -> None:
        given = request.headers.get("X-Request-Deadline")
        if given is None:
            return
        if not re.fullmatch(r"[+-]?[0-9]{1,39}", given):
            raise Problem(400, "parse-deadline", "Invalid deadline format")
        if abs(int(given)) > 253_402_300_799_999_999_999:
            word = "timestamp" if self.is_06 else "timestmap"
            raise Problem(400, "parse-deadline", f"Invalid deadline {word}")
        if request.method == "POST" and int(given) <= time.time_ns():
            raise Problem(408, "request-timeout", "Deadline exceeded")

    def json(self, status: int, content: dict[str, Any], *, with_msg: bool = True) -> web.Response:
        if self.is_06 and with_msg:
            content = {"msg": "ok", **content}
        body = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
        return web.Response(status=status, body=body, content_type="application/json")

    def entry(self, stored: Stored, alias: str) -> dict[str, Any]:
        if self.is_06:
            names = {"file": alias, "alias": alias}
            return {**names, "delete_token": stored.aliases[alias], "details": stored.details}
        details = dict(sorted(stored.details.items()))
        return {"delete_token": stored.aliases[alias], "details": details, "file": alias}

    def stored_answer(self, status: int, entries: list[dict[str, Any]]) -> web.Response:
        if self.is_06:
            return self.json(status, {"files": entries, "uploads": entries})
        return self.json(status, {"files": entries, "msg": "ok"})

    # --- what enters ---

    async def healthz(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def upload(self, request: web.Request) -> web.Response:
        made = [(await self.ingest(content, request), None) for _, content in await self.form(request)]
        return self.stored_answer(
            201, [self.entry(stored, self.alias(stored, name)) for stored, name in made]
        )

    async def import_file(self, request: web.Request) -> web.Response:
        entries, files = [], await self.form(request)
        self.all_media(files)
        for name, content in files:
            stored, name = await self.ingest(content, request), name.rpartition("/")[2]
            if alias_key(name) in self.by_alias:
                raise Problem(
                    400, "duplicate-alias", "Tried to save an image with an already-taken name", status_06=500
                )
            entries.append(self.entry(stored, self.alias(stored, name)))
        return self.stored_answer(201, entries)

    async def upload_backgrounded(self, request: web.Request) -> web.Response:
        uploads = []
        for _, content in await self.form(request):
            upload_id = str(uuid.uuid4())
            try:
                stored = await self.ingest(content, request)
                self.uploads[upload_id] = self.entry(stored, self.alias(stored, None))
            except Problem as problem:
                if problem.code == "invalid-query":  # which is read before anything else
                    raise
                self.uploads[upload_id] = problem
            uploads.append({"upload_id": upload_id})
        return self.json(202, {"uploads": uploads} if self.is_06 else {"msg": "ok", "uploads": uploads})

    async def claim(self, request: web.Request) -> web.Response:
        upload_id = request.query.get("upload_id")
        try:
            outcome = self.uploads.pop(str(uuid.UUID(upload_id or "")), None)
        except ValueError:
            raise Problem(400, "invalid-query", "not an upload id") from None
        if outcome is None:
            raise Problem(400, "already-claimed", "Upload was already claimed", status_06=500)
        if isinstance(outcome, Problem):
            return self.json(422, {"code": outcome.code, "msg": outcome.msg}, with_msg=False)
        return self.stored_answer(200, [outcome])

    def all_media(self, files: list[tuple[str, bytes]]) -> list[bytes]:
        """The contents; an error, and nothing stored, where one of them is no media."""
        return [content for _, content in files if self.options.dummy or recognised(content)]

    async def form(self, request: web.Request) -> list[tuple[str, bytes]]:
        def wrong(msg: str) -> Problem:
            return Problem(400, "file-upload-error", msg)

        kind = request.headers.get("Content-Type")
        if kind is None:
            raise wrong("No Content-Type `form-data` header")
        if not kind.startswith("multipart/"):
            raise wrong("Parsed Content-Type did not have 'multipart' top-level media type")
        if "boundary=" not in kind:
            raise wrong("Multipart boundary is missing")
        files = []
        try:
            async for part in await request.multipart():
                if getattr(part, "name", None) != "images[]":
                    raise wrong("Found field with unexpected name or type")
                if not part.filename:
                    raise wrong("Filename is missing")
                files.append((part.filename, bytes(await part.read())))
        except ValueError:
            raise wrong("Multipart stream is incomplete") from None
        if not files:
            if request.content_length in (0, None):
                raise wrong("Multipart stream is incomplete")
            # 0.6 answers 500 to one of the two routes
            status_06 = 400 if request.path.endswith("backgrounded") else 500
            raise Problem(400, "validate-no-files", "No files present in upload", status_06=status_06)
        if len(files) > self.options.max_files:
            raise wrong("Too many files in request")
        for _, content in files:
            if len(content) > self.options.max_file_size_mb * 1024 * 1024:
                raise Problem(413, "validate-file-size", "File too large", status_06=400)
            if not content:
                raise Problem(400, "validate-file-empty", "Uploaded file is empty")
        return files

    async def download(self, request: web.Request) -> web.Response:
        if "url" not in request.query:
            raise Problem(400, "invalid-query", "missing field `url`")
        stored = await self.ingest(await fetched(request.query["url"]), request)
        entry = self.entry(stored, self.alias(stored, None))
        if request.query.get("backgrounded") != "true":
            return self.stored_answer(201, [entry])
        upload_id = str(uuid.uuid4())
        self.uploads[upload_id] = entry
        uploads = [{"upload_id": upload_id}]
        return self.json(202, {"uploads": uploads} if self.is_06 else {"msg": "ok", "uploads": uploads})

    async def fetch_proxied(self, request: web.Request) -> None:
        """Fetches what a `proxy=` names, and keeps it."""
        url = request.query.get("proxy")
        if url is not None and url not in self.proxied and request.method == "GET":
            stored = await self.ingest(await fetched(url), request)
            self.proxied_as[url] = self.alias(stored, None)
            self.proxied[url] = stored

    async def validate(self, content: bytes, media: Format) -> None:
        """Asks the validation hook, in the shape of either version."""
        if self.options.validation is None:
            return
        status = await asyncio.to_thread(asked, self.options.validation, content, media, self.is_06)
        if status is None:
            raise Problem(500, "http-client-error", "Connection refused (os error 111)")
        if not 200 <= status < 300:
            raise Problem(400, "failed-external-validation", "Failed external validation")

    async def ingest(self, content: bytes, request: web.Request) -> Stored:
        if self.options.dummy:
            return self.keep(content, PNG, Measure(Size(1, 1)))
        media = recognised(content)
        found, upright = self.decoded(content, media)
        steps = self.check_limits(request, media, found, len(content))
        if media.kind is not Kind.VIDEO and (steps or upright is not None):
            assert upright is not None or steps
            image = upright or Image.open(io.BytesIO(content))
            file = io.BytesIO()
            self.processed(image, steps).save(file, _WRITERS.get(media.extension, media.extension.upper()))
            content = file.getvalue()
            found = Measure(processed_size(found.size, steps), found.frames)
        await self.validate(content, media)
        return self.keep(content, media, found)

    def keep(self, content: bytes, media: Format, found: Measure) -> Stored:
        digest = hashlib.sha256(content).digest()
        raw_key = digest + len(content).to_bytes(6) + bytes([_FORMAT_BYTES[media.extension]])
        stored = self.files.get(raw_key)
        if stored is None:
            path = self.options.store / f"{digest.hex()[:2]}" / f"{digest.hex()}.{media.extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            stored = self.files[raw_key] = Stored(path, self.describe(media, found), raw_key, time.time())
        return stored

    def decoded(self, content: bytes, media: Format) -> tuple[Measure, Image.Image | None]:
        """Size and frames; and the picture itself where it has to be turned upright."""
        broken = Problem(500, "command-failure", "exiftool Failed with exit status: 1", status_06=400)
        if media.kind is Kind.VIDEO:
            found = measure(content, media)
            if found is None:
                raise broken
            return found, None
        try:
            image = Image.open(io.BytesIO(content))
            image.load()
        except Exception:  # noqa: BLE001
            raise broken from None
        frames = getattr(image, "n_frames", 1)
        turned = image.getexif().get(0x0112, 1) > 1
        upright = ImageOps.exif_transpose(image) if turned else None
        size = Size(*(upright or image).size)
        return Measure(size, frames if frames > 1 else None), upright

    def check_limits(
        self, request: web.Request, media: Format, found: Measure, size: int
    ) -> list[tuple[str, str]]:
        limits, steps, bad = {}, [], 500 if request.path == "/image" else 400
        # What is proxied is kept as it came; its variants are made later.
        query = {} if "proxy" in request.query else request.query
        for key, value in query.items():
            if request.path == "/image/download" and key in ("url", "backgrounded"):
                continue
            if key in _NUMBERS:
                if not value.isdigit() or int(value) >= _NUMBERS[key]:
                    raise Problem(400, "invalid-query", "invalid digit found in string", status_06=bad)
                limits[key] = int(value)
            elif key in _ALLOWS:
                if value not in ("true", "false"):
                    msg = "provided string was not `true` or `false`"
                    raise Problem(400, "invalid-query", msg, status_06=bad)
                if value == "false" and _ALLOWS[key] is media.kind:
                    raise Problem(400, "media-disallowed", "Media type wasn't allowed for this upload")
            else:
                steps.append((key, value))
        limit = limits.get
        if found.size.width > limit("max_width", found.size.width):
            raise Problem(400, "validate-width", "Too wide")
        if found.size.height > limit("max_height", found.size.height):
            raise Problem(400, "validate-height", "Too tall")
        if (found.frames or 0) > limit("max_frame_count", found.frames or 0):
            raise Problem(400, "validate-frames", "Too many frames")
        area = found.size.width * found.size.height
        if area > limit("max_area", area):
            raise Problem(400, "validate-area", "Too many pixels")
        if size > limit("max_file_size", size) * (1024 * 1024 if "max_file_size" in limits else 1):
            raise Problem(413, "validate-file-size", "Filesize too large", status_06=400)
        try:
            processed_size(found.size, steps)
        except ValueError:
            raise Problem(
                500, "invalid-process-path", "Provided process path is invalid", status_06=400
            ) from None
        return steps

    def processed(self, image: Image.Image, steps: list[tuple[str, str]]) -> Image.Image:
        for step in steps:
            size = processed_size(Size(*image.size), [step])
            if step[0] == "crop":
                image = ImageOps.fit(image, size)
            elif step[0] == "blur":
                image = image.convert("RGB").filter(ImageFilter.GaussianBlur(float(step[1])))
            elif size != image.size:
                image = image.resize(size)
        return image

    def describe(self, media: Format, found: Measure) -> dict[str, Any]:
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        return {
            "blurhash": "L6P%O._3-;_3~qj[WBj[-;j[D%ay",
            "width": found.size.width,
            "height": found.size.height,
            "frames": found.frames,
            "content_type": media.stored_type,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z",
            "format": media.kind.value,
        }

    def alias(self, stored: Stored, name: str | None) -> str:
        extension = stored.details["content_type"].partition("/")[2]
        alias = name or f"{uuid.uuid4()}.{extension}"
        stored.aliases[alias] = str(uuid.uuid4())
        self.by_alias[alias_key(alias)] = stored
        return alias

    # --- what is read ---

    def named(self, request: web.Request, keys: tuple[str, ...] = ("alias",)) -> Stored | None:
        if "alias" in request.match_info:
            return self.by_alias.get(alias_key(request.match_info["alias"]))
        for key in keys:
            if len(request.query.getall(key, [])) == 1:
                return self.by_alias.get(alias_key(request.query[key]))
        if "proxy" in request.query:
            return self.proxied.get(request.query["proxy"])
        raise Problem(400, "invalid-query", _NO_SOURCE if "src" in keys else _NO_ALIAS)

    def missing(self, request: web.Request) -> web.Response:
        if self.is_06:
            return self.json(
                404, {"code": "not-found", "msg": "Failed to serve original file"}, with_msg=False
            )
        return web.Response(status=404)

    async def original(self, request: web.Request) -> web.StreamResponse:
        await self.fetch_proxied(request)
        stored = self.named(request)
        if stored is None:
            if self.not_found is not None and request.method == "GET":
                return await self.serve(request, self.not_found, self.not_found.content, None, status=404)
            return self.missing(request)
        return await self.serve(request, stored, stored.content, stored.details["content_type"])

    async def process(self, request: web.Request) -> web.StreamResponse:
        await self.fetch_proxied(request)
        stored, content, content_type, _ = self.variant(request, make=request.method == "GET")
        if stored is None:
            return self.missing(request)
        return await self.serve(request, stored, content, content_type)

    def variant(self, request: web.Request, *, make: bool) -> tuple[Stored | None, bytes, str, Size]:
        extension = request.match_info["ext"]
        if extension not in _EXTENSIONS:
            raise Problem(400, "invalid-file-extension", "Process endpoint was called with invalid extension")
        stored = self.named(request, ("src", "alias"))
        steps = [(key, value) for key, value in request.query.items() if key in STEPS]
        try:
            processed_size(Size(1, 1), steps)
        except ValueError:
            raise Problem(
                500, "invalid-process-path", "Provided process path is invalid", status_06=400
            ) from None
        if stored is None:
            return None, b"", "", Size(0, 0)
        key = (extension, *steps)
        if key not in stored.variants:
            if not make:
                return None, b"", "", Size(0, 0)
            if stored.details["format"] == "Video":
                image = Image.new("RGB", (stored.details["width"], stored.details["height"]))
            else:
                image = Image.open(io.BytesIO(stored.content)).convert("RGB")
            image, file = self.processed(image, steps), io.BytesIO()
            image.save(file, _WRITERS.get(extension, extension.upper()))
            kind = "image/jpeg" if extension == "jpg" else f"image/{extension}"
            stored.variants[key] = (file.getvalue(), kind, Size(*image.size))
        return stored, *stored.variants[key]

    async def serve(
        self,
        request: web.Request,
        stored: Stored,
        content: bytes,
        content_type: str | None,
        *,
        status: int = 200,
    ) -> web.StreamResponse:
        max_age = 5 if self.is_06 else 0
        headers = {
            "ETag": stored.etag,
            "Last-Modified": formatdate(stored.at, usegmt=True),
            "Accept-Ranges": "bytes",
            "Cache-Control": f"public, max-age={max_age}, immutable, stale-while-revalidate=604800",
            "Content-Type": content_type or stored.details["content_type"],
        }
        if request.headers.get("If-None-Match") == stored.etag:
            return web.Response(status=304)
        wanted = request.headers.get("Range")
        if wanted is not None and request.method == "GET" and status == 200:
            part = _part_of(wanted, len(content))
            if part is _MALFORMED and self.is_06:
                return web.Response(status=400, text="invalid Header provided")
            if part is None and self.is_06:
                return web.Response(status=416)
            if part is None and ("," in wanted or not wanted.startswith("bytes=")):
                raise Problem(416, "range-not-satisfiable", "Range header not satisfiable")
            if part is None:
                return web.Response(status=416, headers=headers)
            if part is not _MALFORMED:
                headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{len(content)}"
                content, status = content[part.start : part.stop], 206
        if self.options.cut_off is not None:
            response = web.StreamResponse(
                status=status, headers={**headers, "Content-Length": str(len(content))}
            )
            await response.prepare(request)
            await response.write(content[: self.options.cut_off])
            assert request.transport is not None
            request.transport.abort()
            return response
        return web.Response(status=status, body=content, headers=headers)

    async def details(self, request: web.Request) -> web.Response:
        stored = self.named(request)
        if stored is None:
            raise self.no_file()
        return self.json(200, stored.details)

    async def details_process(self, request: web.Request) -> web.Response:
        stored, _, content_type, size = self.variant(request, make=False)
        if stored is None:
            raise self.no_file()
        changes = {"width": size.width, "height": size.height, "content_type": content_type}
        return self.json(200, {**stored.details, **changes})

    async def blurhash(self, request: web.Request) -> web.Response:
        await self.fetch_proxied(request)
        stored = self.named(request)
        if stored is None:
            raise self.no_file(status_06=400)
        blurhash = {"blurhash": stored.details["blurhash"]}
        return self.json(200, blurhash if self.is_06 else {**blurhash, "msg": "ok"})

    async def process_later(self, request: web.Request) -> web.Response:
        if self.variant(request, make=True)[0] is None:
            return self.missing(request)
        return self.json(202, {}) if self.is_06 else web.Response(status=202)

    def no_file(self, status_06: int = 404) -> Problem:
        code = "not-found" if self.is_06 else "alias-not-found"
        return Problem(404, code, "Requested a file that doesn't exist", status_06=status_06)

    # --- what is removed and administered ---

    async def delete(self, request: web.Request) -> web.Response:
        stored = self.named(request)
        if stored is None:
            return web.Response(status=204)
        key = alias_key(request.match_info["alias"])
        alias = next(alias for alias in stored.aliases if alias_key(alias) == key)
        if stored.aliases[alias] != request.match_info["token"]:
            raise Problem(403, "invalid-delete-token", "Provided token did not match expected token")
        self.drop(stored, alias)
        return web.Response(status=204)

    def drop(self, stored: Stored, alias: str) -> None:
        del stored.aliases[alias], self.by_alias[alias_key(alias)]
        if not stored.aliases:
            self.files.pop(stored.raw_key, None)

    async def delete_by_key(self, request: web.Request) -> web.Response:
        stored = self.named(request)
        if stored is None:
            raise self.no_file()
        if "proxy" in request.query:
            alias = self.proxied_as.pop(request.query["proxy"])
            del self.proxied[request.query["proxy"]]
        else:
            key = alias_key(request.query["alias"])
            alias = next(alias for alias in stored.aliases if alias_key(alias) == key)
        self.drop(stored, alias)
        return self.json(200, {} if self.is_06 else {"msg": "ok"})

    async def purge(self, request: web.Request) -> web.Response:
        stored = self.named(request)
        if stored is None:
            raise self.no_file()
        aliases = sorted(stored.aliases)

        def purge() -> None:
            for alias in aliases:
                self.by_alias.pop(alias_key(alias), None)
            self.files.pop(stored.raw_key, None)

        # Queued in the real one too: it serves the file for some tenths of a second more.
        asyncio.get_running_loop().call_later(0.3, purge)
        return self.json(200, {"aliases": aliases} if self.is_06 else {"aliases": aliases, "msg": "ok"})

    async def aliases(self, request: web.Request) -> web.Response:
        stored = self.named(request)
        if stored is None:
            raise self.no_file()
        aliases = {"aliases": sorted(stored.aliases)}
        return self.json(200, aliases if self.is_06 else {**aliases, "msg": "ok"})

    async def identifier(self, request: web.Request) -> web.Response:
        stored = self.named(request)
        if stored is None:
            raise self.no_file()
        identifier = {"identifier": f"{stored.raw_key.hex()[:2]}/{stored.raw_key.hex()[:64]}"}
        return self.json(200, identifier if self.is_06 else {**identifier, "msg": "ok"})

    async def hashes(self, request: web.Request) -> web.Response:
        everything = sorted(self.files.values(), key=lambda stored: stored.at, reverse=True)
        limit = int(request.query.get("limit", "20"))
        slug = request.query.get("slug")
        start = next((index for index, stored in enumerate(everything) if stored.slug == slug), 0)
        page: dict[str, Any] = {"limit": limit}
        if limit and everything:
            page["current"] = everything[start].slug
        page["hashes"] = [
            {"hex": stored.raw_key.hex(), "aliases": sorted(stored.aliases), "details": stored.details}
            for stored in everything[start : start + limit]
        ]
        if start + limit < len(everything):
            page["next"] = everything[start + limit].slug
        return self.json(200, {"page": page} if self.is_06 else {"msg": "ok", "page": page})

    async def variants(self, _request: web.Request) -> web.Response:
        for stored in self.files.values():
            stored.variants.clear()
        return web.Response(status=204)

    async def set_not_found(self, request: web.Request) -> web.Response:
        try:
            alias = (await request.json())["alias"]
        except (ValueError, LookupError, TypeError):
            raise Problem(400, "invalid-json", "not the JSON of an alias") from None
        self.not_found = self.by_alias.get(alias_key(alias))
        return self.json(201, {} if self.is_06 else {"msg": "ok"})

    async def prune_missing(self, _request: web.Request) -> web.Response:
        return self.json(200, {"complete": False, "progress": 0, "total": len(self.files)})

    async def export(self, _request: web.Request) -> web.Response:
        return self.json(201, {"msg": "ok"})

    async def limits(self, _request: web.Request) -> web.Response:
        recorded = json.loads(_LIMITS) | {"max_file_size": self.options.max_file_size_mb}
        return self.json(200, recorded, with_msg=False)


async def fetched(url: str) -> bytes:
    """What is behind a URL, or pict-rs's error."""

    def fetch() -> bytes:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            msg = f"Unable to download image, bad response {error.code} {error.reason}"
            raise Problem(500, "download-file-error", msg) from None
        except ValueError:
            raise Problem(400, "download-file-error", "relative URL without a base") from None
        except OSError:
            raise Problem(500, "http-client-error", "Connection refused (os error 111)") from None

    return await asyncio.to_thread(fetch)


def asked(url: str, content: bytes, media: Format, is_06: bool) -> int | None:
    """The hook's status, None where nobody is there. 0.6 sends two Content-Type headers."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.netloc, timeout=30)
    types, body = [media.stored_type], content
    if is_06:
        head = "--b\r\nContent-Disposition: form-data; name*=utf-8''01%2Fa2\r\n\r\n"
        types.append("multipart/form-data; boundary=b")
        body = head.encode() + content + b"\r\n--b--\r\n"
    try:
        connection.putrequest("POST", where.path)
        for one in types:
            connection.putheader("Content-Type", one)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def recognised(content: bytes) -> Format:
    """What it is, or the error of pict-rs where it is nothing."""
    media = recognise(content)
    if media is None:
        raise Problem(400, "command-failure", "Invalid media file provided")
    return media


def _part_of(wanted: str, length: int) -> range | None:
    """The bytes that a `Range` asks for; None where there are none, `_MALFORMED` where it is no range."""
    if not wanted.startswith("bytes=") or "," in wanted:
        return None
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
    first, last = (match[1], match[2]) if match else ("", "")
    if not (first or last) or (first and last and int(first) > int(last)):
        return _MALFORMED
    start = int(first) if first else max(0, length - int(last))
    stop = min(int(last) + 1, length) if first and last else length
    return range(start, stop) if start < length else None


def main() -> None:
    """Serves until it is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m tests.pictrs", description=__doc__)
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--api-key", default="test-api-key")
    parser.add_argument("--dialect", default="0.5", choices=["0.5", "0.6"])
    parser.add_argument("--max-files", type=int, default=1)
    parser.add_argument("--max-file-size-mb", type=int, default=40)
    parser.add_argument("--slow", type=float, default=0, metavar="SECONDS", help="wait before every answer")
    parser.add_argument("--cut-off", type=int, metavar="BYTES", help="break off every file after so many")
    parser.add_argument("--dummy", action="store_true", help="take any bytes for a PNG of one pixel")
    parser.add_argument("--validation", metavar="URL", help="ask there before anything is stored")
    parser.add_argument("--lie", action="store_true", help="answer uploads with 201 and nonsense")
    options = parser.parse_args()
    options.store.mkdir(parents=True, exist_ok=True)
    application = StandIn(options).application()
    web.run_app(application, host="127.0.0.1", port=options.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
