import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch
from PIL import Image

from onepeace_lightning import OnePeace
from onepeace_lightning.cli import main
from onepeace_lightning.inference import embed as embed_module
from onepeace_lightning.inference.embedding_files import read_about, read_embeddings
from tests.inference.conftest import CAPTIONS

PHOTOS = ["0.jpg", "2.jpg", "4.jpg", "trip/1.png", "trip/3.png"]


def embed(model, *words):
    main(["embed", "--model", str(model), "--batch-size", "2", *map(str, words)])


def content(path):
    parts = list(read_embeddings(Path(path)))
    ids = [key for part in parts for key in part[0]]
    return ids, torch.from_numpy(np.concatenate([part[1] for part in parts])), [t for part in parts for t in part[2]]


def fails(*words, model="nowhere", says=""):
    with pytest.raises(SystemExit, match=says) as stop:
        embed(model, *words)
    assert str(stop.value).startswith("onepeace embed: ")


# ---------------------------------------------------------------- sources


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_a_folder_gives_what_the_model_gives(here, model_folder, ending):
    embed(model_folder, "--image", "photos", "--out", f"out.{ending}", "--chunk-size", 2)
    ids, embeddings, texts = content(f"out.{ending}")
    assert ids == PHOTOS
    assert texts == []
    expected = OnePeace.from_pretrained(model_folder).embed(image=[here / "photos" / name for name in PHOTOS])
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=0)
    assert embeddings.dtype == torch.float32
    about = read_about(Path(f"out.{ending}"))
    assert about["modality"] == "image"
    assert about["preprocessing"] == {"size": 48, "resize": "square", "decoding": "upright"}
    assert about["found"] == {"kind": "files", "root": str(here / "photos")}
    assert not Path(f"out.{ending}.partial").exists()


def test_what_takes_long_to_import_is_left_out(here, model_folder):
    heavy = (
        "torch._dynamo torch.onnx sympy torch.distributed.tensor torchvision torchaudio lightning transformers peft"
        " pandas"
    )
    code = "import sys; from onepeace_lightning.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    words = ["embed", "--model", model_folder, "--image", "photos/0.jpg", "--out", "out.parquet"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert not set(heavy.split()) & set(done.stdout.splitlines()[-1].split())


def test_the_files_open_with_the_libraries_alone(here, model_folder):
    embed(model_folder, "--text", "pairs.csv", "--column", "caption", "--out", "out.parquet")
    table = pyarrow.parquet.read_table("out.parquet")
    assert table["text"].to_pylist() == CAPTIONS
    assert table["id"].to_pylist() == [f"pairs.csv#{row}" for row in range(5)]
    assert np.linalg.norm(np.array(table["embedding"].to_pylist()), axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    embed(model_folder, "--text", "pairs.csv", "--column", "caption", "--out", "out.npz")
    with np.load("out.npz", allow_pickle=False) as arrays:
        assert arrays["embeddings"].shape == (5, 24)
        assert arrays["texts"].tolist() == CAPTIONS


def test_every_kind_of_source_gives_the_same_embeddings(here, model_folder):
    sources = {
        "folder": ["photos"],
        "glob": ["photos/**/*.*"],
        "table": ["pairs.csv", "--column", "path"],
        "shards": ["shards"],
    }
    found = {}
    for kind, words in sources.items():
        embed(model_folder, "--image", *words, "--out", f"{kind}.npz")
        ids, embeddings, _ = content(f"{kind}.npz")
        found[kind] = {Path(key).stem: row for key, row in zip(ids, embeddings, strict=True)}
        assert len(found[kind]) == 5
    for rows in found.values():
        for key, row in rows.items():
            torch.testing.assert_close(row, found["folder"][key], atol=1e-5, rtol=0)
    assert content("shards.npz")[0] == ["00000.tar/0", "00000.tar/1", "00001.tar/2", "00001.tar/3", "00002.tar/4"]
    assert content("table.npz")[0][:2] == ["photos/0.jpg", "photos/trip/1.png"]


def test_sounds_texts_of_files_and_of_shards(here, model_folder):
    onepeace = OnePeace.from_pretrained(model_folder)
    embed(model_folder, "--audio", "sounds", "--out", "sounds.npz")
    expected = onepeace.embed(audio=sorted((here / "sounds").iterdir()))
    torch.testing.assert_close(content("sounds.npz")[1], expected, atol=1e-5, rtol=0)
    (here / "texts").mkdir()
    for index, caption in enumerate(CAPTIONS):
        (here / "texts" / f"{index}.txt").write_text(caption)
    for source in ("texts", "shards"):
        embed(model_folder, "--text", source, "--out", f"{source}.npz")
        _, embeddings, texts = content(f"{source}.npz")
        assert texts == CAPTIONS
        torch.testing.assert_close(embeddings, onepeace.embed(text=CAPTIONS), atol=1e-5, rtol=0)


def test_a_picture_that_a_table_names_twice_is_embedded_once(here, model_folder):
    table = here / "pairs.csv"
    table.write_text(table.read_text() + "photos/0.jpg,,another caption\n")
    embed(model_folder, "--image", "pairs.csv", "--column", "path", "--out", "out.npz")
    assert len(content("out.npz")[0]) == 5


def test_a_table_with_tabs_and_another_root(here, model_folder):
    (here / "lists").mkdir()
    (here / "lists" / "one.tsv").write_text("file\tnote\n0.jpg\tit, is\ntrip/1.png\tx\n")
    embed(model_folder, "--image", "lists/one.tsv", "--column", "file", "--root", "photos", "--out", "out.npz")
    assert content("out.npz")[0] == ["0.jpg", "trip/1.png"]


# ---------------------------------------------------------------- going on


class Killed(BaseException):
    """What no handler of errors expects."""


def stopped_after(monkeypatch, batches):
    """Let the command end in the middle, as if it were killed there: nothing is cleaned up."""
    embed_inputs, add = OnePeace.embed_inputs, embed_module.Output.add
    calls = []

    def embed_or_stop(self, modality, inputs):
        if len(calls) == batches:
            monkeypatch.setattr(embed_module.Output, "add", lambda self, chunk: None)
            raise Killed
        calls.append(modality)
        return embed_inputs(self, modality, inputs)

    monkeypatch.setattr(OnePeace, "embed_inputs", embed_or_stop)
    return lambda: (
        monkeypatch.setattr(OnePeace, "embed_inputs", embed_inputs),
        monkeypatch.setattr(embed_module.Output, "add", add),
    )


def counted(monkeypatch):
    """Numbers of items that reach the model."""
    embed_inputs, seen = OnePeace.embed_inputs, []

    def embed_and_count(self, modality, inputs):
        embeddings = embed_inputs(self, modality, inputs)
        seen.append(len(embeddings))
        return embeddings

    monkeypatch.setattr(OnePeace, "embed_inputs", embed_and_count)
    return seen


@pytest.mark.parametrize("source", [["--image", "photos"], ["--image", "shards"]])
@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_a_killed_run_goes_on_and_loses_at_most_a_chunk(here, model_folder, monkeypatch, capsys, source, ending):
    words = [*source, "--out", f"out.{ending}", "--chunk-size", 2]
    embed(model_folder, *source, "--out", f"whole.{ending}")
    restore = stopped_after(monkeypatch, 1)
    with pytest.raises(Killed):
        embed(model_folder, *words)
    assert not Path(f"out.{ending}").exists()
    restore()
    seen = counted(monkeypatch)
    embed(model_folder, *words)
    assert sum(seen) == 3
    assert "going on after 2 of 5 items" in capsys.readouterr().out
    assert content(f"out.{ending}")[0] == content(f"whole.{ending}")[0]
    torch.testing.assert_close(content(f"out.{ending}")[1], content(f"whole.{ending}")[1], atol=1e-5, rtol=0)


def test_a_process_that_is_really_killed_goes_on(here, model_folder):
    code = (
        "import os; from onepeace_lightning.inference import embed as e; from onepeace_lightning.cli import main\n"
        "add = e.Output.add\n"
        "def once(self, chunk):\n    add(self, chunk)\n    os.kill(os.getpid(), 9)\n"
        "e.Output.add = once\n"
        f"main(['embed', '--model', {str(model_folder)!r}, '--image', 'photos', '--out', 'out.npz', '--chunk-size=2',"
        " '--batch-size=2'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert [path.name for path in Path("out.npz.partial").iterdir()] == ["000000000000.parquet"]
    embed(model_folder, "--image", "photos", "--out", "out.npz")
    assert content("out.npz")[0] == PHOTOS


def test_an_interrupted_run_keeps_even_the_chunk_in_the_making(here, model_folder, monkeypatch):
    embed_inputs, calls = OnePeace.embed_inputs, []

    def interrupted(self, modality, inputs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(modality)
        return embed_inputs(self, modality, inputs)

    monkeypatch.setattr(OnePeace, "embed_inputs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed(model_folder, "--image", "photos", "--out", "out.npz")
    monkeypatch.setattr(OnePeace, "embed_inputs", embed_inputs)
    seen = counted(monkeypatch)
    embed(model_folder, "--image", "photos", "--out", "out.npz")
    assert seen == [1]


def test_a_finished_file_is_recognised(here, model_folder, monkeypatch, capsys):
    words = ["--image", "photos", "--out", "out.parquet"]
    embed(model_folder, *words)
    before = Path("out.parquet").read_bytes()
    (here / "out.parquet.partial").mkdir()  # a run killed between its last two steps
    seen = counted(monkeypatch)
    embed(model_folder, *words)
    assert seen == []
    assert "finished already, 5 embeddings" in capsys.readouterr().out
    assert Path("out.parquet").read_bytes() == before
    assert not Path("out.parquet.partial").exists()


def test_items_that_changed_are_refused(here, model_folder, monkeypatch):
    words = ["--image", "photos", "--out", "out.parquet"]
    embed(model_folder, *words)
    Image.new("RGB", (9, 9)).save("photos/new.png")
    fails(*words, model=model_folder, says=r"files were added, removed or changed.*delete out\.parquet or choose")
    Path("photos/new.png").rename("photos/zzz.png")
    fails(*words, model=model_folder, says="holds 5 items, the source has 6")
    Path("photos/zzz.png").unlink()
    embed(model_folder, *words)
    Image.new("RGB", (9, 9)).save("photos/0.jpg")
    fails(*words, model=model_folder, says="added, removed or changed")

    restore = stopped_after(monkeypatch, 1)
    with pytest.raises(Killed):
        embed(model_folder, "--image", "photos", "--out", "two.npz", "--chunk-size", 2)
    restore()
    Path("photos/0.jpg").unlink()
    fails("--image", "photos", "--out", "two.npz", model=model_folder, says=r"items 0 to 1.*delete two\.npz\.partial")


def test_another_model_type_or_modality_is_refused(here, model_folder, other_folder, monkeypatch):
    embed(model_folder, "--image", "photos", "--out", "out.npz")
    fails("--image", "photos", "--out", "out.npz", model=other_folder, says=r"another model \w{16}, now \w{16}")
    fails(
        "--image", "photos", "--out", "out.npz", "--dtype=bf16", model=model_folder, says="another dtype float32, now"
    )
    fails("--audio", "sounds", "--out", "out.npz", model=model_folder, says="another modality image, now audio")
    restore = stopped_after(monkeypatch, 1)
    with pytest.raises(Killed):
        embed(model_folder, "--image", "photos", "--out", "two.npz", "--chunk-size", 2)
    restore()
    fails("--image", "photos", "--out", "two.npz", model=other_folder, says="another model")


def test_a_lost_or_damaged_chunk_is_noticed(here, model_folder, monkeypatch):
    restore = stopped_after(monkeypatch, 2)
    words = ["--image", "photos", "--out", "out.npz", "--chunk-size", 2]
    with pytest.raises(Killed):
        embed(model_folder, *words)
    restore()
    first, second = sorted(Path("out.npz.partial").iterdir())
    saved = first.read_bytes()
    first.unlink()
    fails(*words, model=model_folder, says="begins at item 2, not 0: a chunk is lost")
    first.write_bytes(saved)
    second.write_bytes(second.read_bytes()[:100])
    fails(*words, model=model_folder, says=r"000000000002\.parquet is damaged")


# ---------------------------------------------------------------- bad items


def test_bad_files_are_named_and_the_run_goes_on_when_they_are_mended(here, model_folder, monkeypatch):
    good = Path("photos/trip/1.png").read_bytes()
    Path("photos/trip/1.png").write_bytes(good[:60])
    words = ["--image", "photos", "--out", "out.npz", "--chunk-size", 2]
    fails(*words, model=model_folder, says=r"there are items that cannot be embedded:\n  trip/1\.png: .*\n.*--skip-bad")
    Path("photos/trip/1.png").write_bytes(good)
    seen = counted(monkeypatch)
    embed(model_folder, *words)
    assert seen == [2, 1]
    assert content("out.npz")[0] == PHOTOS


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_bad_files_are_skipped_and_counted_when_asked(here, model_folder, capsys, ending):
    Path("photos/0.jpg").write_bytes(b"")
    Path("photos/2.jpg").write_text("no picture")
    words = ["--image", "photos", "--skip-bad", "--out", f"out.{ending}"]
    embed(model_folder, *words)
    printed = capsys.readouterr().out
    assert "left out: 2 items" in printed
    assert "0.jpg: cannot decode the image (0 bytes)" in printed
    assert "3 embeddings, 2 left out" in printed
    ids, embeddings, _ = content(f"out.{ending}")
    assert ids == PHOTOS[2:]
    expected = OnePeace.from_pretrained(model_folder).embed(image=[here / "photos" / name for name in ids])
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=0)
    assert list(read_about(Path(f"out.{ending}"))["items"]["skipped"]) == ["0.jpg", "2.jpg"]
    embed(model_folder, *words)
    assert "finished already, 3 embeddings, 2 left out" in capsys.readouterr().out


def test_texts_without_words_and_bad_samples_in_shards(here, model_folder, capsys):
    Path("texts.csv").write_text('text,n\na cow,1\n"?!",2\n,3\n')
    words = ["--text", "texts.csv", "--column", "text", "--out", "out.npz"]
    fails(
        *words,
        model=model_folder,
        says=r"there are items that cannot be embedded:\n  texts\.csv#1: caption '\?!' has no words",
    )
    embed(model_folder, *words, "--skip-bad")
    assert content("out.npz")[0] == ["texts.csv#0"]
    from onepeace_lightning.data.shards import ShardWriter

    with ShardWriter(here / "bad", "image", source="test", license="CC0") as writer:
        writer.write("one", {"png": Path("photos/trip/1.png").read_bytes()})
        writer.write("two", {"png": b"nothing"})
    fails("--image", "bad", "--out", "bad.npz", model=model_folder, says=r"00000\.tar/two: cannot decode")


def test_a_source_of_bad_files_only_leaves_no_file(here, model_folder):
    shutil.rmtree("photos")
    Path("photos").mkdir()
    Path("photos/a.png").write_text("no picture")
    words = ["--image", "photos", "--out", "out.parquet", "--skip-bad"]
    fails(*words, model=model_folder, says="none of the 1 items could be embedded")
    assert not Path("out.parquet").exists()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give one modality, such as --image FOLDER, not none"),
        (["--image", "photos", "--audio", "sounds"], "not image, audio"),
        (["--image", "nowhere"], r"there is no nowhere; accepted are a folder, a glob"),
        (["--image", "sounds"], r"hold no file with an extension of image \(jpg, jpeg, .*\), but 5 with \.wav"),
        (["--image", "empty"], "but no files"),
        (["--image", "photos/*.gif"], r"no file matches photos/\*\.gif"),
        (["--image", "pairs.csv"], "say which column with --column; its columns are path, sound, caption"),
        (["--image", "pairs.csv", "--column", "file"], "has no column 'file'; its columns are path, sound, caption"),
        (["--image", "photos", "--column", "path"], r"photos is no table .*--column path has no meaning"),
        (["--text", "pairs.csv", "--column", "caption", "--root", "."], r"--root \. has no meaning"),
        (["--image", "torn.csv", "--column", "a"], r"torn\.csv, line 3: 3 values, the header has 2"),
        (["--image", "latin.csv", "--column", "a"], r"latin\.csv is not UTF-8 .*save it as UTF-8"),
        (["--image", "gap.csv", "--column", "a"], r"gap\.csv has nothing in column 'a' of row 1"),
        (["--image", "head.csv", "--column", "a"], r"head\.csv has no rows"),
        (["--image", "nothing.csv", "--column", "a"], r"nothing\.csv is empty"),
        (["--image", "absent.csv", "--column", "a"], r"absent\.csv"),
        (["--audio", "shards"], "hold 'image-text': there is no audio"),
        (["--image", "photos", "--batch-size", "0"], "batch_size is 0"),
        (
            ["--image", "photos", "--out", "out.csv"],
            r"--out is out\.csv; give a file with the extension \.parquet or \.npz",
        ),
        (["--image", "photos", "--dtype", "fp8"], "dtype is 'fp8'"),
        (["--image", "photos", "--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_wrong_commands_end_with_one_line(here, model_folder, words, says):
    Path("empty").mkdir()
    Path("torn.csv").write_text("a,b\n1,2\n1,2,3\n")
    Path("latin.csv").write_bytes("a,b\nß,2\n".encode("latin-1"))
    Path("gap.csv").write_text("a,b\n0.jpg,2\n,3\n")
    Path("head.csv").write_text("a,b\n")
    Path("nothing.csv").write_text("")
    Path("loose").mkdir()
    shutil.copy("shards/00000.tar", "loose")
    fails("--out", "out.npz", *words, model=model_folder, says=says)
    assert not Path("out.npz").exists()


def test_a_model_without_what_is_asked_for_is_refused(here, tmp_path):
    from dataclasses import replace

    from onepeace_lightning.models import Backbone, PretrainModel
    from tests.tiny import randomised, tiny_config

    config = tiny_config()
    config = replace(config, adapters={"image": config.adapters["image"]})
    OnePeace(randomised(PretrainModel(config, denoise=False))).save_pretrained("vision")
    fails("--audio", "sounds", "--out", "out.npz", model="vision", says="no 'audio' modality; it has image")
    OnePeace(randomised(Backbone(tiny_config()))).save_pretrained("bare")
    fails("--image", "photos", "--out", "out.npz", model="bare", says="Backbone has no contrastive heads")
    OnePeace(randomised(PretrainModel(tiny_config(), denoise=False))).save_pretrained("wordless")
    fails("--text", "shards", "--out", "out.npz", model="wordless", says="bpe_dir=")
    fails("--image", "photos", "--out", "out.npz", says="there is no nowhere; accepted is a folder")


def test_an_unreadable_output_is_not_taken_for_a_finished_one(here, model_folder):
    Path("out.parquet").write_text("something else")
    fails(
        "--image", "photos", "--out", "out.parquet", model=model_folder, says=r"out\.parquet is damaged, or not written"
    )
    np.savez("out.npz", a=np.zeros(3))
    fails("--image", "photos", "--out", "out.npz", model=model_folder, says=r"out\.npz is damaged, or not written")


def test_files_of_a_newer_release_are_refused(here, model_folder):
    embed(model_folder, "--image", "photos", "--out", "out.npz")
    with np.load("out.npz") as arrays:
        parts = dict(arrays)
    parts["about"] = np.array(json.dumps({**json.loads(str(parts["about"])), "format_version": 2}))
    np.savez("out.npz", **parts)
    fails("--image", "photos", "--out", "out.npz", model=model_folder, says="format_version 2; this release reads 1")


# ---------------------------------------------------------------- odd files


def test_links_names_and_hidden_folders(here, model_folder, capsys):
    (here / "more").mkdir()
    (here / "more" / "far").symlink_to("../photos/trip")
    (here / "more" / ".cache").mkdir()
    shutil.copy("photos/0.jpg", "more/.cache/0.jpg")
    shutil.copy("photos/0.jpg", os.fsencode("more") + b"/caf\xe9.jpg")
    fails("--image", "more", "--out", "a.parquet", model=model_folder, says=r"caf\\xe9\.jpg is no UTF-8; rename")
    embed(model_folder, "--image", "more", "--out", "b.parquet", "--skip-bad")
    assert content("b.parquet")[0] == ["far/1.png", "far/3.png"]
    assert "caf\\xe9.jpg" in capsys.readouterr().out


def test_pictures_with_unreadable_metadata_are_embedded_and_absurd_sounds_named(here, model_folder):
    data = Path("photos/0.jpg").read_bytes()
    block = b"Exif\0\0\x01\x02\x03garbage!"
    Path("exif").mkdir()
    Path("exif/0.jpg").write_bytes(data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2) + block + data[2:])
    embed(model_folder, "--image", "exif", "--out", "exif.parquet")
    embed(model_folder, "--image", "photos/0.jpg", "--out", "plain.parquet")
    assert torch.equal(content("exif.parquet")[1], content("plain.parquet")[1])
    Path("loud").mkdir()
    soundfile.write("loud/a.wav", np.full(8000, 1e30, np.float32), 16000, subtype="FLOAT")
    shutil.copy("sounds/0.wav", "loud/b.wav")
    fails(
        "--audio", "loud", "--out", "loud.parquet", model=model_folder, says=r"a\.wav: .*samples in \[1e\+30, 1e\+30\]"
    )
    embed(model_folder, "--audio", "loud", "--out", "loud.parquet", "--skip-bad")
    ids, embeddings, _ = content("loud.parquet")
    assert ids == ["b.wav"]
    assert embeddings.isfinite().all()


def test_a_byte_order_mark_is_no_part_of_a_text(here, model_folder):
    Path("t").mkdir()
    Path("t/a.txt").write_bytes(b"\xef\xbb\xbfa red cow")
    Path("t/b.txt").write_bytes(b"a red cow")
    embed(model_folder, "--text", "t", "--out", "t.parquet")
    assert content("t.parquet")[2] == ["a red cow", "a red cow"]


def test_several_processes_do_not_write_one_file(here, model_folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails("--image", "photos", "--out", "a.parquet", model=model_folder, says="2 processes would write one file")
    assert not Path("a.parquet.partial").exists()
