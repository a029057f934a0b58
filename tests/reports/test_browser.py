"""Reports and a search's page in headless Chromium: nothing is wider than the window, dark screens get dark pages."""

import os
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.modalities.audio import Audio, AudioModality
from onepeace_lightning.modalities.image import Image, ImageModality
from onepeace_lightning.modalities.text import Text, TextModality
from onepeace_lightning.reports.answers import AnswersReport
from onepeace_lightning.reports.base import score_section
from onepeace_lightning.reports.classification import ClassificationReport
from onepeace_lightning.reports.drawing import Drawn, shown_image, shown_item
from onepeace_lightning.reports.pages import answer_row, figure, page
from onepeace_lightning.reports.retrieval import RetrievalExamples, RetrievalReport
from tests.reports.test_classification import Classifier

LONG = "antidisestablishmentarianism-without-any-blank-in-its-whole-length-" * 2
WORDS = ["a bell", "three small red bells and a big blue drum in the distance", LONG, "<i>a horn</i>", "", "犬が二匹"]
LIGHT, DARK = ("light", 200), ("dark", 60)
"""Colour scheme, and what the ground's mean is above or below of 255."""


def scenes(count: int) -> list[Pillow.Image]:
    rng = np.random.default_rng(0)
    sizes = [(240, 160), (160, 240), (240, 240), (240, 60)]
    made = []
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        made.append(Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC))
    return made


def inputs(count: int) -> dict[str, Image | Audio | Text]:
    pixels = torch.stack([torch.from_numpy(np.array(one.resize((96, 96)))).permute(2, 0, 1) for one in scenes(count)])
    waves = [torch.sin(torch.arange(3000.0) * (0.02 + 0.01 * row)) for row in range(count)]
    return {"image": Image(pixels), "audio": Audio.pad(waves), "text": Text(torch.full((count, 3), 2))}


def retrieval() -> str:
    given, count = inputs(len(WORDS)), len(WORDS)
    sections = {}
    for name, (searched, queried) in {
        "images": ("image", "text"),
        "sounds": ("audio", "text"),
        "both": ("image", "audio"),
    }.items():
        batch = Batch([f"key{row}" for row in range(count)], {k: given[k] for k in (searched, queried)}, captions=WORDS)
        sections[name] = RetrievalExamples(name, queried, searched)
        sections[name].add(batch, {searched: torch.randn(count, 8), queried: torch.randn(count, 8)}, queries=4)
    report = RetrievalReport()
    scores = score_section({"image_to_text/R@1": 12.5, "chance/image_to_text/R@1": 1.0}, ["prompt: " + LONG])
    return page(report.title, report.introduction, scores + report.sections(sections))


def answers() -> str:
    pictures, legend = scenes(12), {"bell": "#cc3311", "ground": "rgb(20, 120, 200)", LONG: "#009988"}
    rows = [[shown_image(one, title) for title in ("image", "truth", "answer")] for one in pictures[:4]]
    heard = shown_item(AudioModality(), inputs(2)["audio"], 0)
    streams = {
        "segmentation": [Drawn(row, "", "mean IoU 0.71: bell 0.5", "", True, legend) for row in rows],
        "grounding": [
            Drawn([one], WORDS[row % len(WORDS)], "overlap 0.3", "", row % 2 == 0) for row, one in enumerate(pictures)
        ],
        "questions": [Drawn([heard], "what is it?", LONG, "a bell", False)] * 3,
    }
    report = AnswersReport()
    return page(report.title, report.introduction, report.sections(streams))


def classification(classes: int, modality: str) -> str:
    task, report, count = Classifier(), ClassificationReport(), 60
    task.classes = [f"{name} {number}" for number, name in zip(range(classes), [*WORDS] * 9, strict=False)]
    rng = np.random.default_rng(1)
    labels = [[task.classes[index]] for index in rng.integers(0, classes, count)]
    batch = Batch([str(row) for row in range(count)], {modality: inputs(count)[modality]}, targets={"labels": labels})
    kept = report.collect(None, "val", batch, {"logits": torch.randn(count, classes)}, task)
    return page(report.title, report.introduction, report.sections({"val": report.join([kept])}))


def search() -> str:
    picture, sound, text = ImageModality(), AudioModality(), TextModality()
    given = inputs(6)
    query = text.html(WORDS[1]) + sound.html(sound.sample(given["audio"], 0)) + picture.html(scenes(2)[1])
    hits = [picture.html(one) for one in scenes(4)] + [
        sound.html(sound.sample(given["audio"], row)) for row in range(3)
    ]
    hits.append(text.html(LONG))
    figures = [figure(content, f"<b>{rank}.</b> {LONG}{rank}.jpg") for rank, content in enumerate(hits)]
    return page("Search", "What was asked for is in the box.", answer_row(query, figures))


PAGES = {
    "retrieval": retrieval,
    "answers": answers,
    "classification": lambda: classification(12, "image"),
    "classification of recordings in many classes": lambda: classification(45, "audio"),
    "search": search,
}


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="a browser is driven by selenium")
    if which("chromium") is None or which("chromedriver") is None:
        pytest.skip("no Chromium here")
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(option)
    options.binary_location = which("chromium")
    driver = webdriver.Chrome(options, webdriver.ChromeService(which("chromedriver")))
    yield driver
    driver.quit()


@pytest.mark.parametrize("name", PAGES)
def test_the_page_fits_the_window_in_light_and_dark(name, browser, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "page.html"
    path.write_text(PAGES[name](), encoding="utf-8")
    for width in (400, 1400):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for scheme, bound in (LIGHT, DARK):
            feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
            browser.get(path.as_uri())
            assert browser.execute_script("return window.innerWidth") == width
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            outside = """return [...document.querySelectorAll("figure, img, audio, .asked, .facts div, figcaption")]
                .filter(one => one.getBoundingClientRect().right > window.innerWidth + 1)
                .map(one => one.outerHTML.slice(0, 80))"""
            assert browser.execute_script(outside) == []
            ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            red = int(ground.partition("(")[2].split(",")[0])
            assert red > bound if scheme == "light" else red < bound
            players = browser.execute_script(
                "return [...document.querySelectorAll('audio')].map(one => one.clientWidth)"
            )
            assert all(player >= 220 for player in players), players
            if folder := os.environ.get("SCREENSHOTS"):  # to be looked at
                height = min(browser.execute_script("return document.documentElement.scrollHeight"), 6000)
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "height": height})
                browser.save_screenshot(str(Path(folder) / f"{name.replace(' ', '_')}-{width}-{scheme}.png"))
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
