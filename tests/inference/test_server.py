"""The service: what clients get, whatever they send and however many they are."""

import asyncio
import base64
import io
import json
import threading
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image

from onepeace_lightning import OnePeace
from onepeace_lightning.cli import main
from tests.inference.conftest import CAPTIONS

pytest.importorskip("fastapi", reason="the service is an extra: pip install onepeace-lightning[serve]")

import openai
import uvicorn

from onepeace_lightning.inference.gallery import Gallery
from onepeace_lightning.inference.server import Limits, make_app, serve

KEY = "a secret"


@contextmanager
def running(app):
    """The address of a service on a free port of this machine."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def png(seed: int = 0, side: int = 40) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def wav(seed: int = 0, samples: int = 5000) -> bytes:
    stream = io.BytesIO()
    wave = np.random.default_rng(seed).standard_normal(samples) / 8
    soundfile.write(stream, wave, 16000, format="WAV")
    return stream.getvalue()


def url(modality: str, data: bytes) -> str:
    return f"data:{modality}/{'png' if modality == 'image' else 'wav'};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def model(model_folder):
    return OnePeace.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def address(model):
    with running(make_app(model, name="tiny", limits=Limits(request_bytes=200_000, seconds=20))) as where:
        yield where


@pytest.fixture
def files(here, model_folder):
    """A gallery of the folder's images and texts."""
    main(["embed", "--model", str(model_folder), "--image", "photos", "--out", "photos.parquet"])
    main(
        ["embed", "--model", str(model_folder), "--text", "pairs.csv", "--column", "caption", "--out", "texts.parquet"]
    )
    return ["photos.parquet", "texts.parquet"]


@pytest.fixture
def searching(files, model):
    with running(make_app(model, gallery=Gallery(files, model, keep=True))) as where:
        yield where


def test_openai_s_client_gets_what_the_model_gives(address, model):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="any")
    (audio := io.BytesIO(wav())).seek(0)
    inputs = ["a red cow", url("image", png()), url("audio", wav()), "dog"]
    answer = client.embeddings.create(model="tiny", input=inputs)
    rows = np.array([entry.embedding for entry in answer.data])
    expected = np.stack([
        model.embed(text=["a red cow"])[0], model.embed(image=[Image.open(io.BytesIO(png()))])[0],
        model.embed(audio=[(soundfile.read(audio, dtype="float32")[0], 16000)])[0], model.embed(text=["dog"])[0],
    ])  # fmt: skip
    assert np.abs(rows - expected).max() < 1e-5
    floats = client.embeddings.create(model="tiny", input="dog", encoding_format="float").data[0].embedding
    assert np.abs(np.array(floats) - expected[3]).max() < 1e-5
    cut = client.embeddings.create(model="tiny", input="dog", dimensions=8).data[0].embedding
    assert np.abs(np.array(cut) - expected[3, :8] / np.linalg.norm(expected[3, :8])).max() < 1e-5
    assert client.models.list().data[0].id == "tiny"


def test_two_hundred_requests_at_a_time_all_get_the_same_as_alone(address, model):
    texts = [f"{CAPTIONS[number % 5]} {'bell ' * (number % 7)}" for number in range(200)]
    pixels = [url("image", png(number % 5)) for number in range(200)]

    async def ask_all():
        async with httpx.AsyncClient(base_url=address, timeout=60, limits=httpx.Limits(max_connections=200)) as client:
            asked = [
                client.post("/v1/embeddings", json={"input": texts[number] if number % 2 else pixels[number]})
                for number in range(200)
            ]
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask_all())
    assert [answer.status_code for answer in answers] == [200] * 200
    rows = np.array([answer.json()["data"][0]["embedding"] for answer in answers])
    words = model.embed(text=texts).numpy()
    images = model.embed(image=[Image.open(io.BytesIO(png(seed))) for seed in range(5)]).numpy()
    expected = np.stack([words[number] if number % 2 else images[number % 5] for number in range(200)])
    assert np.abs(rows - expected).max() < 1e-5
    metrics = httpx.get(f"{address}/metrics").text
    assert 'onepeace_requests_total{path="/v1/embeddings",status="200"}' in metrics
    assert "onepeace_waiting 0.0" in metrics  # nothing is left behind


def hostile():
    """Bodies that no client should send, as bytes."""
    image, audio = base64.b64encode(png()).decode(), base64.b64encode(wav()).decode()
    inputs = [
        "", "   ", [], [""], ["a"] * 300, 7, None, [1, 2, 3], [[1, 2]], {"text": "a"}, "x" * 30_000, ["a", ""],
        "data:", "data:image", "data:image/png", "data:image/png,xx", "data:image/png;base64", "data:image/png;base64,",
        "data:image/png;base64,????", f"data:image/png;base64,{image[:200]}", f"data:image/png;base64,{audio}",
        f"data:audio/wav;base64,{image}", f"data:audio/wav;base64,{audio[:40]}", f"data:video/mp4;base64,{image}",
        f"data:smell/raw;base64,{image}", "data:text/html;base64,PHNjcmlwdD4=" * 400, f"DATA:image/png;base64,{image}",
        "data:image/svg+xml;base64," + base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode(),
        "data:image/gif;base64," + base64.b64encode(b"GIF89a" + b"\xff" * 40).decode(),
        "data:image/png;base64," + base64.b64encode(b"").decode(), "data:image/png;base64,\x00",
        "data:audio/wav;base64," + base64.b64encode(b"RIFF\xff\xff\xff\xffWAVEfmt ").decode(),
        "data:audio/flac;base64," + base64.b64encode(b"fLaC" + bytes(60)).decode(),
        "data:../image/png;base64,AAAA", "data:image/../../etc/passwd;base64,AAAA",
    ]  # fmt: skip
    bodies = [json.dumps({"input": given}).encode() for given in inputs]
    bodies += [
        b"", b"{", b"null", b"[]", b'"a"', b'{"inputs": "a"}', b"\xff\xfe", b'{"input": "a", "dimensions": 0}',
        b'{"input": "a", "dimensions": 100000}', b'{"input": "a", "dimensions": "many"}',
        b'{"input": "a", "encoding_format": "hex"}', b'{"input": ' + b"[" * 5000,
        b'{"input": "' + b"a" * 300_000 + b'"}',
        b'{"input": NaN}', b'{"input": true}', rb'{"input": "\ud83d"}',
        b'{"input": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    ]  # fmt: skip
    return bodies


def test_hostile_requests_are_refused_in_one_line_each_and_the_service_goes_on(address, model):
    bodies = hostile()
    assert len(bodies) >= 50
    with httpx.Client(base_url=address, timeout=30) as client:
        for body in bodies:
            answer = client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
            assert 400 <= answer.status_code < 500, (body[:80], answer.text)
            message = answer.json()["error"]["message"]
            assert message
            assert "\n" not in message
            assert "Traceback" not in answer.text
        good = client.post("/v1/embeddings", json={"input": "dog"}).json()["data"][0]["embedding"]
        assert client.get("/health").json()["waiting"] == 0
    assert np.abs(np.array(good) - model.embed(text=["dog"])[0].numpy()).max() < 1e-5


def test_half_an_emoji_is_left_out(address, model):
    bodies = [rb'{"input": "dog \ud83d"}', rb'{"input": ["dog \ud83d"], "model": "m\ud83d"}']
    for body in bodies:
        answer = httpx.post(f"{address}/v1/embeddings", content=body, headers={"content-type": "application/json"})
        given = np.array(answer.json()["data"][0]["embedding"])
        assert np.abs(given - model.embed(text=["dog"])[0].numpy()).max() < 1e-5


def test_a_path_is_a_text_and_no_file_is_read(address, model, here):
    answer = httpx.post(f"{address}/v1/embeddings", json={"input": "photos/0.jpg"}).json()
    expected = model.embed(text=["photos/0.jpg"])[0].numpy()
    assert np.abs(np.array(answer["data"][0]["embedding"]) - expected).max() < 1e-5


def test_more_than_may_wait_is_refused_and_counts_for_nothing_later(model):
    limits = Limits(waiting=8)
    with running(make_app(model, limits=limits)) as where, httpx.Client(base_url=where, timeout=30) as client:
        answer = client.post("/v1/embeddings", json={"input": ["dog"] * 9})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert client.post("/v1/embeddings", json={"input": ["dog"] * 8}).status_code == 200


def test_an_api_key_is_asked_for(model):
    with running(make_app(model, api_key=KEY)) as where, httpx.Client(base_url=where) as client:
        body = {"input": "dog"}
        assert client.post("/v1/embeddings", json=body).status_code == 401
        assert client.post("/v1/embeddings", json=body, headers={"Authorization": "Bearer no"}).status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.get("/health").status_code == 200
        assert client.post("/v1/embeddings", json=body, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_other_addresses_need_a_key(model_folder):
    with pytest.raises(ValueError, match="give --api-key"):
        serve(model=str(model_folder), host="0.0.0.0")


def test_search_mixes_inputs_and_items_with_weights(searching, files, model):
    gallery = Gallery(files, model, keep=True)
    with httpx.Client(base_url=searching, timeout=30) as client:
        assert "<title>Search</title>" in client.get("/").text
        text = client.post("/v1/search", json={"query": [{"input": CAPTIONS[0]}], "k": 3}).json()
        assert text["items"] == len(gallery) == 10
        assert text["hits"][0]["text"] == CAPTIONS[0]
        assert text["hits"][0]["cosine"] == pytest.approx(1, abs=1e-5)

        mixture = [{"input": "dog", "weight": 0.5}, {"row": 2, "weight": -0.25}, {"input": url("image", png())}]
        hits = client.post("/v1/search", json={"query": mixture, "k": 10}).json()["hits"]
        embeddings = np.stack([gallery.embedding(row) for row in range(10)])
        query = (
            0.5 * model.embed(text=["dog"])[0].numpy() - 0.25 * embeddings[2]
            + model.embed(image=[Image.open(io.BytesIO(png()))])[0].numpy()
        )  # fmt: skip
        cosines = embeddings @ query / np.linalg.norm(query)
        assert [hit["row"] for hit in hits] == np.argsort(-cosines, kind="stable").tolist()
        assert np.abs(np.array([hit["cosine"] for hit in hits]) - np.sort(cosines)[::-1]).max() < 1e-5

        shown = client.get("/v1/items/0").text
        assert shown.startswith('<img src="data:image/webp;base64,')


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/search", {"query": []}, 400),
        ("POST", "/v1/search", {"query": [{}]}, 400),
        ("POST", "/v1/search", {"query": [{"input": "a", "row": 1}]}, 400),
        ("POST", "/v1/search", {"query": [{"row": 99}]}, 404),
        ("POST", "/v1/search", {"query": [{"row": -1}]}, 400),
        ("POST", "/v1/search", {"query": [{"input": "a", "weight": 0}]}, 400),
        ("POST", "/v1/search", {"query": [{"input": "a", "weight": 1e9}]}, 400),
        ("POST", "/v1/search", {"query": [{"input": "a"}], "k": 100000}, 400),
        ("GET", "/v1/items/99", None, 404),
        ("GET", "/v1/items/-1", None, 404),
        ("GET", "/v1/items/..%2f..%2fetc%2fpasswd", None, 404),
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/v1/embeddings", None, 405),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(searching, method, path, body, status):
    answer = httpx.request(method, searching + path, json=body)
    assert answer.status_code in (status, 404 if "%2f" in path else status, 400 if "passwd" in path else status)
    assert "\n" not in answer.json()["error"]["message"]


def test_the_page_searches_and_goes_on_from_a_hit(searching, tmp_path):
    """Text, hits, "more like this", driven in a browser; nothing is wider than the window."""
    browser = pytest.importorskip("selenium.webdriver", reason="a browser is driven by selenium")
    from shutil import which

    if which("chromium") is None or which("chromedriver") is None:
        pytest.skip("no Chromium here")
    options = browser.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=400,900"):
        options.add_argument(option)
    options.binary_location = which("chromium")
    driver = browser.Chrome(options, browser.ChromeService(which("chromedriver")))
    try:
        driver.get(searching)
        driver.find_element("id", "text").send_keys(CAPTIONS[0])
        driver.find_element("css selector", "button.go").click()
        hits = _hits(driver, 10)
        assert CAPTIONS[0] in hits[0].text
        similar = driver.find_element("css selector", ".hit[data-modality=image] footer button")
        name = similar.find_element("xpath", "../span").text
        driver.execute_script("arguments[0].click()", similar)
        _wait(lambda: "× 1" in driver.find_element("id", "query").text and "1.000" in _hits(driver, 10)[0].text)
        first = _hits(driver, 10)[0]
        assert first.get_attribute("data-modality") == "image"
        assert name.split(" ")[1] in first.text
        for width in (400, 1400):
            driver.set_window_size(width, 900)
            assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        driver.quit()


def _wait(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the page did not come to it in time"
        time.sleep(0.1)


def _hits(driver, count):
    _wait(lambda: len(driver.find_elements("css selector", ".hit")) == count)
    return driver.find_elements("css selector", ".hit")
