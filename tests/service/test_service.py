"""The service: its answers beside the encoder's own, what it refuses, and what crashes do not do to it."""

import asyncio
import base64
import io
import os
import signal
import socket
import time

import numpy as np
import pytest
import random_variables
import soundfile
from commands import refused
from small_network import SIZES

from sdpn_jax import SpeakerEncoder
from sdpn_jax.data import audio, features
from sdpn_jax.decision import Calibration
from sdpn_jax.models.network import network_of
from sdpn_jax.weights import model_folder

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")
from starlette.testclient import TestClient

from sdpn_jax.service import batches, decoders, guards, maps, server
from sdpn_jax.service.app import Service, Settings, application, documented
from sdpn_jax.speaker import gallery as galleries
from sdpn_jax.speaker.voices import Voices

CALIBRATION = Calibration(5.0, -1.0, 0.5)
TOKEN = "a-secret-of-some-length"
SETTINGS = Settings(
    guards.Limits(frozenset({"voices.example"}), None, 4 << 20, 20.0), max_seconds=10, max_minutes=0.5, decoders=1
)


def wav(seed, seconds=1.0):
    rng = np.random.default_rng(seed)
    samples = np.convolve(rng.normal(size=int(16000 * seconds)), rng.normal(size=20), "same")
    file = io.BytesIO()
    soundfile.write(file, 0.02 * samples, 16000, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    variables = random_variables.of_network(network_of(SIZES))
    model_folder.write_model(folder, SIZES, variables, {}, 0.2, "CC0-1.0", calibration=CALIBRATION)
    return folder


@pytest.fixture(scope="module")
def loaded(model):
    return server.load(model)[0]


@pytest.fixture(scope="module")
def service(loaded):
    return Service(loaded, Voices(None, loaded.fingerprint), SETTINGS)


@pytest.fixture(scope="module")
def client(service):
    with TestClient(application(service, SETTINGS), base_url="http://localhost", raise_server_exceptions=False) as made:
        yield made


def error_of(response, status):
    assert response.status_code == status, response.text
    assert {*response.json()} == {"error"}
    assert {*response.json()["error"]} == {"code", "message"}
    return response.json()["error"]["code"]


def test_embeddings_are_the_encoders(client, model):
    data = [wav(seed, seconds) for seed, seconds in ((0, 0.7), (1, 1.0), (2, 2.3))]
    answer = client.post("/embed", files=[("recording", each) for each in data]).json()
    waveforms = [soundfile.read(io.BytesIO(each), dtype="float32") for each in data]
    expected = SpeakerEncoder.load(model).embed(waveforms)
    np.testing.assert_allclose(answer["embeddings"], expected, atol=2e-5)
    assert [each["seconds"] for each in answer["recordings"]] == [0.7, 1.0, 2.3]


def test_verify(client, model):
    a, b = wav(0), wav(1)
    answer = client.post("/verify", files={"a": a, "b": b}).json()
    encoder = SpeakerEncoder.load(model)
    expected = encoder.verify(*(soundfile.read(io.BytesIO(each), dtype="float32") for each in (a, b)))
    assert answer["score"] == pytest.approx(expected.score, abs=1e-5)
    assert answer["threshold"] == 0.2
    assert answer["same_speaker"] == expected.same_speaker
    assert answer["probability"] == pytest.approx(1 / (1 + np.exp(1 - 5 * answer["score"])), abs=1e-9)
    assert "picture" not in answer["recordings"][0]


def test_a_picture_holds_what_the_recording_does(client):
    about = client.post("/verify?pictures=1", files={"a": wav(0), "b": wav(1)}).json()["recordings"][0]
    samples = soundfile.read(io.BytesIO(wav(0)), dtype="float32")[0]
    picture = about["picture"]
    assert max(picture["maxima"]) == pytest.approx(samples.max(), abs=1e-4)
    assert min(picture["minima"]) == pytest.approx(samples.min(), abs=1e-4)
    levels = np.frombuffer(base64.b64decode(picture["log_mel"]["values"]), np.uint8)
    levels = levels.reshape(picture["log_mel"]["frames"], picture["log_mel"]["bins"])
    log_mel = features.log_mel(samples)
    assert levels.shape == log_mel.shape
    loudest = np.unravel_index(log_mel.argmax(), log_mel.shape)
    assert levels[loudest] == 255
    below = 10 * (log_mel - log_mel.max()) / np.log(10)  # dB
    np.testing.assert_allclose(levels[below > -55] / 255, 1 + below[below > -55] / 60, atol=1.01 / 255)


def test_a_speakers_life(client):
    hostile = "<img src=x onerror=alert(1)>/../ü"
    for name, seeds in ((hostile, (0, 1)), ("Bob", (5,)), ("Eve", (6,))):
        files = [("recording", wav(seed)) for seed in seeds]
        answer = client.post("/enrol", files=files, data={"name": name}).json()
        assert (answer["name"], answer["recordings"]) == (name, len(seeds))
    found = client.get("/speakers").json()
    assert [each["name"] for each in found["speakers"]] == sorted([hostile, "Bob", "Eve"])
    assert found["kept"] == "memory"
    assert np.abs([each["position"] for each in found["speakers"]]).max() <= 1
    who = client.post("/identify", files={"recording": wav(5)}).json()
    assert who["speaker"] == "Bob"
    assert who["ranking"][0]["score"] == pytest.approx(1, abs=1e-5)
    place = next(each["position"] for each in found["speakers"] if each["name"] == "Bob")
    np.testing.assert_allclose(who["position"], place, atol=1e-4)
    assert client.delete(f"/speakers/{hostile.replace('/', '%2F').replace('<', '%3C')}").json() == {"deleted": 1}
    assert error_of(client.delete("/speakers/nobody"), 404) == "nobody"
    assert client.delete("/speakers").json() == {"deleted": 2}
    assert client.post("/identify", files={"recording": wav(5)}).json()["ranking"] == []


def test_what_cannot_be_used_is_said(client):
    a = wav(0)
    assert error_of(client.post("/verify", files={"a": a}), 400) == "no_upload"
    assert error_of(client.post("/verify", files={"a": a, "b": b"hello"}), 422) == "no_recording"
    assert "recording 2" in client.post("/verify", files={"a": a, "b": b"hello"}).json()["error"]["message"]
    assert error_of(client.post("/identify", files={"recording": wav(0, 11)}), 422) == "no_recording"
    assert error_of(client.post("/embed", files=[("recording", a)] * 17), 400) == "bad_request"
    assert error_of(client.post("/identify", files=[("recording", a)] * 2), 400) == "too_many"
    assert error_of(client.post("/enrol", files={"recording": a}), 400) == "no_name"
    assert error_of(client.post("/enrol", files={"recording": a}, data={"name": "a\0b"}), 422) == "unusable"
    assert error_of(client.post("/enrol", files={"recording": a}, data={"name": "x" * 5000}), 400) == "bad_request"
    assert error_of(client.post("/embed", content=b"{}", headers={"content-type": "application/json"}), 415)
    assert error_of(client.post("/embed", content=b"x", headers={"content-type": "multipart/form-data"}), 400)
    assert error_of(client.get("/embed"), 405) == "not_allowed"
    assert client.get("/embed").headers["allow"] == "POST"
    assert error_of(client.post("/embed/", follow_redirects=False), 404)
    assert error_of(client.get("/../etc/passwd"), 404) == "not_found"
    assert error_of(client.get("/page/..%2f..%2fapp.py"), 404) == "not_found"
    assert error_of(client.post("/embed", files={"recording": bytes(5 << 20)}), 413) == "too_large"


def test_other_sites_may_not_ask(client):
    a = {"recording": wav(0)}
    assert error_of(client.get("/speakers", headers={"host": "evil.example"}), 403) == "host"
    assert error_of(client.get("/health", headers={"host": "evil.example:8000"}), 403) == "host"
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert error_of(client.post("/identify", files=a, headers=headers), 403) == "origin"
        assert error_of(client.delete("/speakers", headers=headers), 403) == "origin"
    own = {"host": "voices.example:8000", "origin": "https://voices.example:8000", "sec-fetch-site": "same-origin"}
    response = client.post("/identify", files=a, headers=own)
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers
    assert client.options("/identify").status_code == 405


@pytest.mark.parametrize(
    ("host", "own"),
    [("localhost:1", True), ("127.0.0.1", True), ("[::1]:80", True), ("192.168.0.7:80", True), ("a.b", True)]
    + [
        (name, False) for name in ("", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[", "a.b@c")
    ],
)
def test_names_of_the_service(host, own):
    assert guards.is_own(host, frozenset({"a.b"})) == own


def test_a_token_is_needed_where_there_is_one(loaded):
    settings = Settings(guards.Limits(frozenset(), TOKEN, 4 << 20, 20.0), decoders=1)
    service = Service(loaded, Voices(None, loaded.fingerprint), settings)
    with TestClient(application(service, settings), base_url="http://localhost") as client:
        for path in ("/speakers", "/metrics"):
            assert error_of(client.get(path), 401) == "no_token"
            assert error_of(client.get(path, headers={"authorization": f"Bearer {TOKEN}x"}), 401) == "no_token"
            assert client.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        for path in ("/", "/page.css", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        assert client.get("/health").json()["token"] is True


def test_the_page_is_guarded_by_its_headers(client):
    headers = client.get("/").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert client.get("/speakers").headers["cache-control"] == "no-store"


def test_a_slow_upload_is_ended(loaded):
    async def slow():
        await asyncio.sleep(10)

    sent = []

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        await receive()

    limits = guards.Limits(frozenset(), None, 100, 0.05)
    guard = guards.Guard(app, limits, guards.Room(1000, "uploads"), frozenset())
    scope = {"type": "http", "method": "POST", "path": "/embed", "headers": [(b"host", b"localhost")]}
    asyncio.run(guard(scope, slow, send))
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_uploads_together_are_bounded():
    room = guards.Room(100, "uploads")
    statuses = []

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        statuses.append(message.get("status"))

    async def one(guard):
        parts = iter([{"body": bytes(40), "more_body": True}, {"body": bytes(40)}])

        async def receive():
            return {"type": "http.request", **next(parts)}

        scope = {"type": "http", "method": "POST", "path": "/embed", "headers": [(b"host", b"localhost")]}
        await guard(scope, receive, send)

    async def both():
        guard = guards.Guard(app, guards.Limits(frozenset(), None, 100, 5.0), room, frozenset())
        await asyncio.gather(one(guard), one(guard))

    asyncio.run(both())
    assert sorted(status for status in statuses if status) == [200, 503]
    assert room.used == 0


def test_a_full_queue_is_said_with_a_time_to_come_back(loaded):
    settings = Settings(SETTINGS.limits, most_working=0, decoders=1)
    service = Service(loaded, Voices(None, loaded.fingerprint), settings)
    with TestClient(application(service, settings), base_url="http://localhost") as client:
        response = client.post("/identify", files={"recording": wav(0)})
    assert error_of(response, 503) == "busy"
    assert response.headers["retry-after"] == "1"


def test_a_decoder_that_dies_or_hangs_is_replaced():
    made = decoders.Decoders(1, decoders.Task("sdpn", None, 10.0, 20.0))
    made.wait()
    process = made._idle.get()
    os.kill(process._process.pid, signal.SIGKILL)
    made._idle.put(process)
    with pytest.raises(audio.AudioError, match="the decoder failed"):
        made.log_mel(wav(0))
    heard = made.log_mel(wav(0))
    samples = soundfile.read(io.BytesIO(wav(0)), dtype="float32")[0]
    np.testing.assert_allclose(heard.array, features.log_mel(samples), rtol=1e-4, atol=1e-5)
    process = made._idle.get()
    os.kill(process._process.pid, signal.SIGSTOP)
    process._timeout_s = 0.2
    made._idle.put(process)
    with pytest.raises(audio.AudioError, match="longer than 0.2 s"):
        made.log_mel(wav(0))
    assert made.samples(wav(0), 10.0).array.shape == (16000,)
    made.close()


def test_recordings_of_several_are_embedded_together():
    seen = []

    def embed(log_mels):
        time.sleep(0.05)
        return np.stack([log_mel.mean(0) for log_mel in log_mels])

    async def work():
        gathered = batches.Batches(embed, 4, lambda rows, _: seen.append(rows))
        gathered.start()
        log_mels = [np.full((3, 2), number) for number in range(10)]
        answers = await asyncio.gather(*(gathered.embed([log_mel]) for log_mel in log_mels))
        gathered.close()
        return answers

    answers = asyncio.run(work())
    np.testing.assert_array_equal(np.concatenate(answers)[:, 0], np.arange(10))
    assert seen == [4, 4, 2]


def test_a_batch_that_fails_fails_for_its_own():
    def embed(log_mels):
        if len(log_mels[0]) == 1:
            raise ValueError("bad")
        return np.zeros((len(log_mels), 2))

    async def work():
        gathered = batches.Batches(embed, 1, lambda *_: None)
        gathered.start()
        results = await asyncio.gather(*(gathered.embed([np.zeros((n, 2))]) for n in (1, 2)), return_exceptions=True)
        gathered.close()
        return results

    bad, good = asyncio.run(work())
    assert isinstance(bad, ValueError)
    assert good.shape == (1, 2)


@pytest.mark.parametrize(
    ("frames", "padded"), [(1, 128), (128, 128), (129, 192), (192, 192), (193, 256), (301, 384), (385, 512), (513, 768)]
)
def test_lengths_served(frames, padded):
    assert batches.served_length(frames) == padded
    assert [batches.served_rows(rows) for rows in (1, 2, 4, 5, 16, 17)] == [1, 4, 4, 16, 16, 64]


def test_a_map_shows_distances_of_two_dimensions():
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.normal(size=(8, 2)))[0]
    angles = rng.uniform(0, 6, 5)
    units = np.stack([np.cos(angles), np.sin(angles)], 1) @ plane.T
    gallery = galleries.Gallery(list("abcde"), units, np.ones(5, int), "model")
    places = maps.Map(gallery).positions
    wanted = np.linalg.norm(units[:, None] - units, axis=-1)
    found = np.linalg.norm(places[:, None] - places, axis=-1)
    np.testing.assert_allclose(found / found.max(), wanted / wanted.max(), atol=1e-9)


def test_all_is_documented(client):
    shown = {"HEAD", "OPTIONS"}
    routes = {
        (method, route.path.replace("{name:path}", "{name}"))
        for route in client.app.routes
        for method in route.methods - shown
        if route.name != "page"
    }
    assert documented() == routes


def test_metrics_tell_no_names(client):
    client.post("/enrol", files={"recording": wav(0)}, data={"name": "Rumpelstilzchen"})
    client.delete("/speakers/Rumpelstilzchen")
    text = client.get("/metrics").text
    assert 'sdpn_requests_total{route="enrol",status="200"}' in text
    assert "sdpn_batch_recordings_bucket" in text
    assert "Rumpelstilzchen" not in text


def test_diarization(client):
    rng = np.random.default_rng(0)
    voices = [np.convolve(rng.normal(size=48000), rng.normal(size=200), "same") for _ in range(2)]
    silence = 1e-4 * rng.normal(size=16000)
    samples = np.concatenate([part for turn in (0, 1, 0, 1) for part in (0.01 * voices[turn], silence)])
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="FLAC")
    answer = client.post("/diarize", files={"recording": file.getvalue()}, data={"speakers": "2"}).json()
    assert answer["seconds"] == pytest.approx(16.0)
    spoken = [(each["start"], each["end"]) for each in answer["segments"]]
    np.testing.assert_allclose(spoken, [(4 * n, 4 * n + 3) for n in range(4)], atol=0.2)
    assert {each["speaker"] for each in answer["speakers"]} <= {"speaker1", "speaker2"}
    assert sum(each["seconds"] for each in answer["speakers"]) == pytest.approx(12, abs=1)
    assert error_of(client.post("/diarize", files={"recording": b"x"}), 422) == "no_recording"
    assert error_of(client.post("/diarize", files={"recording": file.getvalue()}, data={"speakers": "x"}), 400)


def test_other_machines_need_a_token(monkeypatch):
    monkeypatch.delenv(server.TOKEN, raising=False)
    assert "SDPN_JAX_TOKEN" in refused("serve", "--host=0.0.0.0", "--port=0")
    monkeypatch.setenv(server.TOKEN, "short")
    assert "16 or more" in refused("serve", "--port=0")
    assert server.is_loopback("::1")
    assert not server.is_loopback("voices.example")


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose another" in refused("serve", f"--port={taken.getsockname()[1]}")
