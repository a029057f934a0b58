import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onepeace_lightning import OnePeace
from onepeace_lightning.cli import main
from tests.inference.conftest import CAPTIONS, tiny_onepeace
from tests.reports.test_retrieval import Page


@pytest.fixture
def indexed(here, model_folder, monkeypatch):
    """The working folder with files of embeddings of each modality."""
    monkeypatch.setenv("COLUMNS", "120")
    for words in (
        ["--image", "photos", "--out", "photos.parquet"],
        ["--audio", "sounds", "--out", "sounds.npz"],
        ["--text", "pairs.csv", "--column", "caption", "--out", "texts.parquet"],
    ):
        main(["embed", "--model", str(model_folder), *words])
    return here


def search(model, *words):
    main(["search", "--model", str(model), *map(str, words)])


def fails(*words, model="nowhere", says=""):
    with pytest.raises(SystemExit, match=says) as stop:
        search(model, *words)
    assert str(stop.value).startswith("onepeace search: ")


def ranked(printed):
    """(cosine, modality, id) of each row of the table."""
    rows = [re.findall(r"│([^│]*)", line) for line in printed.splitlines() if line.startswith("│")]
    return [(float(row[1]), row[2].strip(), row[3].strip()) for row in rows]


def expected_order(cosines, keys, top=10):
    order = sorted(range(len(keys)), key=lambda index: -cosines[index])
    return [keys[index] for index in order][:top]


def test_a_text_finds_what_the_model_finds(indexed, model_folder, capsys):
    search(model_folder, "photos.parquet", "--text", "a red cow", "--top", 3, "--out", "page.html")
    found = ranked(capsys.readouterr().out)
    keys = sorted(path.relative_to("photos").as_posix() for path in Path("photos").rglob("*.*g"))
    onepeace = OnePeace.from_pretrained(model_folder)
    cosines = onepeace.similarity(text=["a red cow"], image=[Path("photos") / key for key in keys])[0].tolist()
    assert [key for _, _, key in found] == expected_order(cosines, keys, top=3)
    assert found[0][0] == pytest.approx(max(cosines), abs=6e-4)


def test_a_weighted_sum_of_a_sound_and_a_text(indexed, model_folder, capsys):
    words = ["--audio", "sounds/1.wav", "--text", "at night", "--weights", "audio=0.7", "text=0.3"]
    search(model_folder, "photos.parquet", *words)
    printed = capsys.readouterr().out
    assert "0.7 × audio 'sounds/1.wav' + 0.3 × text 'at night'" in printed
    onepeace = OnePeace.from_pretrained(model_folder)
    query = 0.7 * onepeace.embed(audio=["sounds/1.wav"]) + 0.3 * onepeace.embed(text=["at night"])
    keys = sorted(path.relative_to("photos").as_posix() for path in Path("photos").rglob("*.*g"))
    cosines = (onepeace.embed(image=[Path("photos") / key for key in keys]) @ F.normalize(query, dim=1)[0]).tolist()
    assert [key for _, _, key in ranked(printed)] == expected_order(cosines, keys)
    assert [cosine for cosine, _, _ in ranked(printed)] == pytest.approx(sorted(cosines, reverse=True), abs=6e-4)


def test_several_indices_are_ranked_together(indexed, model_folder, capsys):
    search(model_folder, "photos.parquet", "sounds.npz", "texts.parquet", "--image", "photos/0.jpg", "--top", 20)
    found = ranked(capsys.readouterr().out)
    assert len(found) == 15
    assert [cosine for cosine, _, _ in found] == sorted((cosine for cosine, _, _ in found), reverse=True)
    assert found[0] == (1.0, "image", "0.jpg")
    assert {modality for _, modality, _ in found} == {"image", "audio", "text"}
    assert any(key == f"{CAPTIONS[0]} (pairs.csv#0)" for _, _, key in found)


def test_an_index_of_many_pieces_is_ranked_as_one(indexed, model_folder, capsys, monkeypatch):
    search(model_folder, "photos.parquet", "--text", "dog", "--top", 2)
    whole = ranked(capsys.readouterr().out)
    main(["embed", "--model", str(model_folder), "--image", "photos", "--out", "pieces.parquet",
          "--chunk-size=1", "--batch-size=1"])  # fmt: skip
    capsys.readouterr()
    search(model_folder, "pieces.parquet", "--text", "dog", "--top", 2)
    assert ranked(capsys.readouterr().out) == whole


def test_the_page_holds_query_pictures_and_sounds(indexed, model_folder):
    search(model_folder, "photos.parquet", "sounds.npz", "texts.parquet", "--audio", "sounds/0.wav",
           "--image", "photos/2.jpg", "--text", "<b>cow</b>", "--top", 15, "--out", "new/page.html")  # fmt: skip
    html = Path("new/page.html").read_text(encoding="utf-8")
    page = Page(html)
    assert all(source.startswith("data:image/webp;base64,") for source in page.sources("img"))
    assert all(source.startswith("data:audio/wav;base64,") for source in page.sources("audio"))
    assert (len(page.sources("img")), len(page.sources("audio"))) == (6, 6)
    assert "<b>cow</b>" in page.text
    assert "audio × 1" in page.text
    assert [name for name in CAPTIONS if name in page.text] == CAPTIONS
    assert not re.search(r"https?://|<link|<script", html)


def test_shards_show_their_pictures(indexed, model_folder):
    main(["embed", "--model", str(model_folder), "--image", "shards", "--out", "shards.npz"])
    search(model_folder, "shards.npz", "--text", "dog")
    assert len(Page(Path("search.html").read_text()).sources("img")) == 5


def test_files_that_were_moved_are_named_and_found_again(indexed, model_folder, capsys):
    shutil.move("photos", "elsewhere")
    Path("elsewhere/0.jpg").unlink()
    search(model_folder, "photos.parquet", "--text", "dog")
    assert "5 of the files are no longer where they were embedded" in capsys.readouterr().out
    assert "The file is not there any more." in Path("search.html").read_text()
    search(model_folder, "photos.parquet", "--text", "dog", "--root", "elsewhere")
    assert "1 of the files are no longer" in capsys.readouterr().out
    assert len(Page(Path("search.html").read_text()).sources("img")) == 4


def test_an_index_of_another_model_is_refused(indexed, model_folder, other_folder):
    says = rf"photos\.parquet was made by another model \(fingerprint \w{{16}} in float32\) than {other_folder}"
    fails("photos.parquet", "--text", "dog", model=other_folder, says=says)
    main(["embed", "--model", str(other_folder), "--image", "photos", "--out", "other.npz"])
    fails("photos.parquet", "other.npz", "--text", "dog", model=model_folder, says=r"other\.npz was made by another")


def test_an_index_in_another_type_is_searched_in_that_type(indexed, model_folder, capsys):
    main(["embed", "--model", str(model_folder), "--image", "photos", "--out", "half.npz", "--dtype", "bf16"])
    search(model_folder, "half.npz", "--image", "photos/0.jpg", "--top", 1)
    assert ranked(capsys.readouterr().out) == [(1.0, "image", "0.jpg")]
    fails("photos.parquet", "half.npz", "--text", "dog", model=model_folder, says=r"half\.npz .* in bfloat16\)")


def test_an_index_outlives_what_its_modality_does_not_use(indexed, model_folder):
    onepeace = OnePeace.from_pretrained(model_folder)
    prints = {name: onepeace.fingerprint(name) for name in ("text", "image", "audio")}
    assert len(set(prints.values())) == 3
    with torch.no_grad():
        onepeace.backbone.adapters["audio"].cls_token += 1
        onepeace.model.heads.projections["text"].weight += 1
        onepeace.model.heads.logit_scale += 1
    assert onepeace.fingerprint("image") == prints["image"]
    assert onepeace.fingerprint("text") != prints["text"]
    assert onepeace.fingerprint("audio") != prints["audio"]
    with torch.no_grad():
        onepeace.backbone.encoder.blocks[-1].attention.out.weight *= 1.001
    assert onepeace.fingerprint("image") != prints["image"]
    other_words = tiny_onepeace()
    other_words.tokenizer.max_length = 5
    assert other_words.fingerprint("text") != prints["text"]
    assert other_words.fingerprint("image") == prints["image"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["photos.parquet"], "nothing to search with"),
        (["--text", "dog"], "arguments are required: embeddings"),
        (["nowhere.parquet", "--text", "dog"], r"there is no file of embeddings nowhere\.parquet"),
        (["pairs.csv", "--text", "dog"], r"pairs\.csv is no file of embeddings"),
        (["photos.parquet", "--text", "dog", "--weights", "text=0"], "add up to nothing"),
        (["photos.parquet", "--text", "dog", "--weights", "audio=1"], "weights of audio do not fit queries of text"),
        (["photos.parquet", "--text", "dog", "--top", 0], "top is 0"),
        (["photos.parquet", "--text", "dog", "--out", "page.pdf"], "the page ends in .html"),
        (["photos.parquet", "--text", "?"], "no words"),
        (["photos.parquet", "--audio", "nowhere.wav"], r"audio 0 \(nowhere\.wav\)"),
        (["photos.parquet", "--image", "pairs.csv"], r"image 0 \(pairs\.csv\): cannot decode"),
    ],
)
def test_wrong_commands_end_with_what_is_right(indexed, model_folder, capsys, words, says):
    with pytest.raises(SystemExit) as stop:
        search(model_folder, *words)
    assert re.search(says, f"{stop.value}{capsys.readouterr().err}")
    assert not Path("search.html").exists()


def test_a_damaged_index_is_refused(indexed, model_folder):
    for name in ("photos.parquet", "sounds.npz"):
        Path(name).write_bytes(Path(name).read_bytes()[:200])
        fails(name, "--text", "dog", model=model_folder, says=f"{name} is damaged")
    np.savez("sounds.npz", embeddings=np.zeros(3))
    fails("sounds.npz", "--text", "dog", model=model_folder, says="not written by")


@pytest.mark.parametrize("text", ["#sunset", "null", "~ dog", "12", "[dog", "true", "- a: b"])
def test_a_text_is_taken_as_it_is_typed(indexed, model_folder, capsys, text):
    search(model_folder, "texts.parquet", f"--text={text}", "photos.parquet", "--top", 2)
    assert repr(text) in capsys.readouterr().out


def test_bytes_that_are_no_utf_8_do_not_keep_the_page_from_being_written(indexed, model_folder, capsys):
    search(model_folder, "texts.parquet", "--text=dog \udcff", "--top", 2)
    Path("photo-\udce9.jpg").write_bytes(next(Path("photos").rglob("*.jpg")).read_bytes())
    search(model_folder, "texts.parquet", "--image=photo-\udce9.jpg", "--top", 2)
    assert "photo-\\xe9.jpg" in Path("search.html").read_text(encoding="utf-8")


def test_wrong_weights_are_told(indexed, model_folder, capsys):
    with pytest.raises(SystemExit):
        search(model_folder, "photos.parquet", "--text", "dog", "--weights", 1)
    assert "'1' is not NAME=NUMBER, such as text=0.5" in capsys.readouterr().err


def test_shards_with_upper_case_extensions_show_their_pictures(here, model_folder):
    Path("upper").mkdir()
    with tarfile.open("upper/0.tar", "w") as tar:
        tar.add("photos/0.jpg", "d/IMG_1.JPG")
    main(["shards", "manifest", "upper"])
    main(["embed", "--model", str(model_folder), "--image", "upper", "--out", "upper.parquet"])
    search(model_folder, "upper.parquet", "--text", "a cow")
    page = Path("search.html").read_text()
    assert "0.tar/d/IMG_1" in page
    assert "data:image" in page
    assert "not there any more" not in page


def test_shards_in_sub_folders_show_their_pictures(here, model_folder):
    Path("far/more").mkdir(parents=True)
    for number, name in enumerate(("far/0.tar", "far/more/1.tar")):
        with tarfile.open(name, "w") as tar:
            tar.add("photos/0.jpg", f"d/{number}.jpg")
    main(["shards", "manifest", "far"])
    manifest = json.loads(Path("far/manifest.json").read_text())
    [shard] = manifest["shards"]
    manifest["shards"].append({**shard, "name": "more/1.tar", "bytes": Path("far/more/1.tar").stat().st_size})
    Path("far/manifest.json").write_text(json.dumps({**manifest, "samples": 2}))
    main(["embed", "--model", str(model_folder), "--image", "far", "--out", "far.parquet"])
    search(model_folder, "far.parquet", "--text", "a cow")
    page = Page(Path("search.html").read_text())
    assert {"0.tar/d/0", "more/1.tar/d/1"} <= set(re.findall(r"[\w/.]+\.tar/d/\d", page.text))
    assert len(page.sources("img")) == 2
