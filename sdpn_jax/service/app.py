"""The service as an ASGI application: what each address does."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdpn_jax.data.audio import AudioError
from sdpn_jax.data.front_ends import FRONT_ENDS
from sdpn_jax.decision import Calibration, Decision
from sdpn_jax.diarization.diarize import diarize, named, seconds_of
from sdpn_jax.diarization.turns import Diarization
from sdpn_jax.errors import UserError
from sdpn_jax.service.batches import Batches, Embed
from sdpn_jax.service.decoders import Decoders, Heard, Task
from sdpn_jax.service.guards import CODES, Guard, Limits, Refused, Room, response_of
from sdpn_jax.service.maps import Map
from sdpn_jax.service.measures import Measured, Measures
from sdpn_jax.speaker.gallery import composed
from sdpn_jax.speaker.voices import Full, Voices
from sdpn_jax.vectors import cosine

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "json": "application/json"}
MOST_FIELD = 4096  # bytes of a field that is no file
PIECE = 1 << 20  # samples given to the diarization at once
WINDOWS = 32  # of a long recording embedded at once, so that others are not kept waiting


@dataclass(frozen=True)
class Settings:
    """What a service may be asked for. max_seconds: of a recording; max_minutes: of one to be diarized.

    at_once: recordings embedded in a batch; most_recordings: in one request; most_working: requests at work or waiting;
    most_held: bytes of all uploads together; decoders: processes; decoding_s: for one recording.
    """

    limits: Limits
    max_seconds: float = 60.0
    max_minutes: float = 60.0
    channel: int | None = None
    at_once: int = 32
    most_recordings: int = 16
    most_working: int = 128
    most_held: int = 1 << 30
    decoders: int = 2
    decoding_s: float = 60.0


@dataclass(frozen=True)
class Model:
    """A loaded encoder: log-mels -> embeddings, its fingerprint, the name of its front end, and how it decides."""

    embed: Embed
    fingerprint: str
    front_end: str
    embedding_size: int
    decision: Decision


class Service:
    """Answers requests with a model and its gallery; start() and close() frame its life in an event loop."""

    def __init__(self, model: Model, voices: Voices, settings: Settings):
        self._model, self._voices, self._settings = model, voices, settings
        self.measures = Measures()
        self._batches = Batches(model.embed, settings.at_once, self.measures.batch)
        self._working = Room(settings.most_working, "the service is busy")
        self._long = Room(4, "other long recordings are waiting")
        self._one_long = asyncio.Lock()
        self.measures.working.set_function(lambda: self._working.used)
        task = Task(model.front_end, settings.channel, settings.max_seconds, settings.decoding_s)
        self._decoders = Decoders(settings.decoders, task)
        self._threads = ThreadPoolExecutor(settings.decoders, "decoding")
        self._map: Map | None = None

    def start(self) -> None:
        """Begins to work, in the running event loop."""
        self._decoders.wait()
        self._batches.start()

    def close(self) -> None:
        """Ends all processes and threads."""
        self._batches.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._decoders.close()

    async def health(self, _: Request) -> Response:
        """GET /health."""
        settings, decision = self._settings, self._model.decision
        limits = {
            "megabytes": settings.limits.most_bytes >> 20,
            "seconds": settings.max_seconds,
            "minutes": settings.max_minutes,
            "recordings": settings.most_recordings,
        }
        return JSONResponse(
            {
                "status": "ok",
                "model": self._model.fingerprint,
                "embedding_size": self._model.embedding_size,
                "threshold": decision.threshold,
                "calibrated": decision.calibration is not None,
                "token": settings.limits.token is not None,
                "kept": self._kept(),
                "limits": limits,
            }
        )

    async def embed(self, request: Request) -> Response:
        """POST /embed."""
        async with self._form(request) as form, self._at_work():
            heard, embeddings = await self._embedded(_recordings(form, "recording"), request)
        return JSONResponse({"embeddings": embeddings.tolist(), "recordings": _about(heard)})

    async def verify(self, request: Request) -> Response:
        """POST /verify."""
        threshold = self._threshold()
        async with self._form(request) as form, self._at_work():
            uploads = [_recordings(form, name, 1)[0] for name in ("a", "b")]
            heard, (a, b) = await self._embedded(uploads, request)
        score = float(cosine(a, b))
        return JSONResponse(
            {
                "score": score,
                "threshold": threshold,
                "probability": self._probability(score),
                "same_speaker": score >= threshold,
                "recordings": _about(heard),
            }
        )

    async def identify(self, request: Request) -> Response:
        """POST /identify."""
        threshold = self._threshold()
        async with self._form(request) as form, self._at_work():
            heard, embeddings = await self._embedded(_recordings(form, "recording", 1), request)
        ranked = await asyncio.to_thread(self._ranked, embeddings[0])
        ranking = [
            {"name": name, "score": score, "probability": self._probability(score)} for name, score in ranked[:10]
        ]
        is_known = bool(ranked) and ranked[0][1] >= threshold
        return JSONResponse(
            {
                "speaker": ranked[0][0] if is_known else None,
                "threshold": threshold,
                "ranking": ranking,
                "position": self._map.position(embeddings[0]) if self._map else None,
                "recordings": _about(heard),
            }
        )

    async def enrol(self, request: Request) -> Response:
        """POST /enrol."""
        async with self._form(request) as form, self._at_work():
            name = form.get("name")
            if not isinstance(name, str) or not name.strip():
                raise Refused(400, "no_name", "the field name is missing")
            uploads = _recordings(form, "recording")
            heard, embeddings = await self._embedded(uploads, request)
            name = composed(name.strip())
            count = await asyncio.to_thread(self._voices.enrol, name, embeddings)
        speakers = len((await asyncio.to_thread(self._voices.gallery)).names)
        return JSONResponse({"name": name, "recordings": count, "speakers": speakers, "heard": _about(heard)})

    async def speakers(self, _: Request) -> Response:
        """GET /speakers."""
        found = await asyncio.to_thread(self._mapped)
        rows = zip(found.gallery.names, found.gallery.counts.tolist(), found.positions.tolist(), strict=True)
        speakers = [{"name": name, "recordings": count, "position": place} for name, count, place in rows]
        return JSONResponse({"kept": self._kept(), "speakers": speakers})

    async def delete_speaker(self, request: Request) -> Response:
        """DELETE /speakers/{name}."""
        if not await asyncio.to_thread(self._voices.delete, request.path_params["name"]):
            raise Refused(404, "nobody", "nobody of this name is enrolled")
        return JSONResponse({"deleted": 1})

    async def delete_speakers(self, _: Request) -> Response:
        """DELETE /speakers."""
        return JSONResponse({"deleted": await asyncio.to_thread(self._voices.delete, None)})

    async def diarize(self, request: Request) -> Response:
        """POST /diarize."""
        async with self._form(request) as form:
            uploads = _recordings(form, "recording", 1)
            count = _whole_number(form.get("speakers"))
            with self._long.taken():
                async with self._one_long:
                    found, heard = await self._diarized(await uploads[0].read(), count)
        turns = [{"start": turn.start, "end": turn.end, "speaker": turn.speaker} for turn in found.turns]
        speakers = [{"speaker": name, "seconds": spoken} for name, spoken in seconds_of(found.turns).items()]
        about = _about([heard])
        return JSONResponse({"seconds": found.seconds, "segments": turns, "speakers": speakers, "recordings": about})

    def _kept(self) -> str:
        return self._voices.path.name if self._voices.path else "memory"

    def _threshold(self) -> float:
        if self._model.decision.threshold is None:
            raise Refused(409, "no_threshold", "this model brings no threshold: find one by sdpn calibrate")
        return self._model.decision.threshold

    def _probability(self, score: float) -> float | None:
        calibration: Calibration | None = self._model.decision.calibration
        return calibration.probability(score) if calibration else None

    @contextlib.asynccontextmanager
    async def _form(self, request: Request) -> AsyncIterator[Any]:
        """The fields of an upload, all of it here."""
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise Refused(415, "no_form", "wanted is multipart/form-data, as curl --form sends it")
        files = self._settings.most_recordings
        async with request.form(max_files=files, max_fields=8, max_part_size=MOST_FIELD) as form:
            yield form

    @contextlib.asynccontextmanager
    async def _at_work(self) -> AsyncIterator[None]:
        """Room among the requests at work, for the block."""
        with self._working.taken():
            yield

    async def _embedded(self, uploads: list[UploadFile], request: Request) -> tuple[list[Heard], np.ndarray]:
        """Decodes uploads and embeds them: what was heard, and embeddings [N, D]."""
        picture = request.query_params.get("pictures") == "1"
        work = [self._decoded(upload, place, picture) for place, upload in enumerate(uploads, 1)]
        heard = await asyncio.gather(*work)
        return heard, await self._batches.embed([each.array for each in heard])

    async def _decoded(self, upload: UploadFile, place: int, picture: bool) -> Heard:
        try:
            heard = await self._in_thread(partial(self._decoders.log_mel, picture=picture), await upload.read())
        except AudioError as error:
            raise AudioError(f"recording {place}: {error}") from None
        self.measures.heard(heard.seconds)
        return heard

    async def _diarized(self, data: bytes, speakers: int | None) -> tuple[Diarization, Heard]:
        loop = asyncio.get_running_loop()
        heard = await self._in_thread(
            partial(self._decoders.samples, max_seconds=60 * self._settings.max_minutes), data
        )
        self.measures.heard(heard.seconds)

        def pieces() -> Iterable[np.ndarray]:
            return (heard.array[start : start + PIECE] for start in range(0, len(heard.array), PIECE))

        def embed(log_mels: list[np.ndarray]) -> np.ndarray:
            parts = [log_mels[start : start + WINDOWS] for start in range(0, len(log_mels), WINDOWS)]
            work = (asyncio.run_coroutine_threadsafe(self._batches.embed(part), loop) for part in parts)
            return np.concatenate([part.result() for part in work])

        features = FRONT_ENDS[self._model.front_end]
        found = await asyncio.to_thread(diarize, pieces, embed, features, speakers)
        if self._model.decision.threshold is not None:
            gallery = await asyncio.to_thread(self._voices.gallery)
            found = named(found, gallery, self._model.decision.threshold)
        return found, heard

    async def _in_thread(self, work: Callable[[bytes], Heard], data: bytes) -> Heard:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, data)

    def _mapped(self) -> Map:
        gallery = self._voices.gallery()
        if self._map is None or self._map.gallery is not gallery:
            self._map = Map(gallery)
        return self._map

    def _ranked(self, embedding: np.ndarray) -> list[tuple[str, float]]:
        return self._mapped().gallery.scores(embedding)


def application(service: Service, settings: Settings) -> Starlette:
    """Makes the application of a service: its addresses, its page, and the guard before both."""
    page = page_files()
    routes = [
        Route("/embed", service.embed, methods=["POST"]),
        Route("/verify", service.verify, methods=["POST"]),
        Route("/identify", service.identify, methods=["POST"]),
        Route("/enrol", service.enrol, methods=["POST"]),
        Route("/diarize", service.diarize, methods=["POST"]),
        Route("/speakers", service.speakers, methods=["GET"]),
        Route("/speakers", service.delete_speakers, methods=["DELETE"]),
        Route("/speakers/{name:path}", service.delete_speaker, methods=["DELETE"]),
        Route("/health", service.health, methods=["GET"]),
        Route("/metrics", service.measures.show, methods=["GET"]),
        *(Route(path, partial(_static, content), methods=["GET"], name="page") for path, content in page.items()),
    ]
    uploads = Room(settings.most_held, "too many uploads at the same time")
    application = Starlette(
        routes=routes,
        middleware=[
            Middleware(Measured, measures=service.measures),
            Middleware(Guard, limits=settings.limits, uploads=uploads, static=frozenset(page)),
        ],
        exception_handlers=dict.fromkeys((Refused, AudioError, UserError, HTTPException, Exception), _answer_to),
        lifespan=partial(_life, service),
    )
    application.router.redirect_slashes = False  # an answer without a body, which is not the form of errors
    return application


@contextlib.asynccontextmanager
async def _life(service: Service, _: Starlette) -> AsyncIterator[None]:
    service.start()
    try:
        yield
    finally:
        service.close()


def page_files() -> dict[str, tuple[bytes, str]]:
    """Reads the files of the page: {path: (content, media type)}."""
    folder = resources.files("sdpn_jax.service") / "page"
    files = {}
    for file in folder.iterdir():
        kind = KINDS.get(file.name.rpartition(".")[2])
        if kind:
            path = {"index.html": "/", "docs.html": "/docs"}.get(file.name, f"/{file.name}")
            files[path] = file.read_bytes(), f"{kind}; charset=utf-8"
    return files


def _static(content: tuple[bytes, str], _: Request) -> Response:
    return Response(content[0], media_type=content[1], headers={"cache-control": "no-cache"})


def _answer_to(_: Request, error: Exception) -> Response:
    """The one form of all errors. What nobody expected is ours; its traceback is raised again, for the log."""
    match error:
        case Refused():
            return response_of(error)
        case AudioError():
            return response_of(Refused(422, "no_recording", str(error)))
        case Full():
            return response_of(Refused(409, "full", str(error)))
        case UserError():
            return response_of(Refused(422, "unusable", str(error)))
        case HTTPException():
            refused = Refused(error.status_code, CODES.get(error.status_code, "refused"), str(error.detail))
            response = response_of(refused)
            response.headers.update(error.headers or {})  # such as Allow
            return response
    return response_of(Refused(500, "fault", "a fault of the service: its log says more"))


def _recordings(form: Any, field: str, most: int | None = None) -> list[UploadFile]:
    uploads = [upload for upload in form.getlist(field) if isinstance(upload, UploadFile)]
    if not uploads:
        raise Refused(400, "no_upload", f"the file {field} is missing")
    if most and len(uploads) > most:
        raise Refused(400, "too_many", f"one file {field} is wanted, not {len(uploads)}")
    return uploads


def _whole_number(text: Any) -> int | None:
    if text in (None, ""):
        return None
    if not isinstance(text, str) or not text.isdecimal() or len(text) > 3 or not 1 <= int(text) <= 100:
        raise Refused(400, "speakers", "speakers is no number from 1 to 100")
    return int(text)


def _about(heard: list[Heard]) -> list[dict]:
    return [
        {"seconds": each.seconds, "hints": each.hints} | ({"picture": each.picture} if each.picture else {})
        for each in heard
    ]


def documented() -> set[tuple[str, str]]:
    """Lists (method, path) of all that openapi.json describes."""
    paths = json.loads(page_files()["/openapi.json"][0])["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}
