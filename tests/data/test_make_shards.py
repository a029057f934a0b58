import csv
import io
import json
import os
import tarfile

import numpy as np
import pytest
import soundfile
from PIL import Image

from onepeace_lightning.data.from_folder import from_folder
from onepeace_lightning.data.from_table import from_csv
from onepeace_lightning.data.make_manifest import manifest
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.modalities.tokenizers import load_tokenizer

VOCAB = 400


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def wav(hertz):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(800) * hertz / 1000), 16000, format="WAV")
    return buffer.getvalue()


def samples(folder):
    """Every sample of a stream folder: [{ending: bytes}]."""
    found = {}
    for shard in read_manifest(folder).shards:
        with tarfile.open(folder / shard.name) as tar:
            for member in tar:
                key, ending = member.name.split(".")
                found.setdefault((shard.name, key), {})[ending] = tar.extractfile(member).read()
    return list(found.values())


def pairs(folder, count=6):
    """A table of pictures and captions beside its files."""
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for index in range(count):
        (folder / "pictures" / f"{index}.PNG").write_bytes(png(index))
        rows.append([f"pictures/{index}.PNG", f"thing number {index}"])
    return write_table(folder / "pairs.csv", rows)


def write_table(path, rows, header=("path", "caption")):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def make(table, out, **options):
    columns = {"image": "path", "text": "caption"} | options.pop("columns", {})
    columns = {name: column for name, column in columns.items() if column}
    from_csv(str(table), out=str(out), columns=columns, **{"vocab_size": VOCAB, **options})


def test_table_of_pairs_becomes_shards_with_untouched_bytes(tmp_path):
    table = pairs(tmp_path / "raw")
    make(table, tmp_path / "out", samples_per_shard=4, source="mine", license="CC0")
    stream = tmp_path / "out" / "train" / "image-text"
    found = {sample["txt"].decode(): sample for sample in samples(stream)}
    assert {caption: sample["png"] for caption, sample in found.items()} == {
        f"thing number {index}": png(index) for index in range(6)
    }
    kept = json.loads(found["thing number 0"]["json"])
    assert kept == {"from": "pairs.csv, line 2", "files": {"image": "pictures/0.PNG"}}
    made = read_manifest(stream)
    assert (made.data_type, made.source, made.license) == ("image-text", "mine", "CC0")
    assert [shard.samples for shard in made.shards] == [4, 2]
    assert load_tokenizer(tmp_path / "out" / "tokenizer").encode("thing number 3").ids[-1] == 2
    assert not (tmp_path / "out" / "val").exists()


def test_neighbours_of_the_table_are_mixed(tmp_path):
    make(pairs(tmp_path / "raw", 30), tmp_path / "out")
    lines = [json.loads(sample["json"])["from"] for sample in samples(tmp_path / "out" / "train" / "image-text")]
    assert lines != sorted(lines)


def test_root_and_tabs(tmp_path):
    pairs(tmp_path / "raw", 2)
    table = tmp_path / "elsewhere.tsv"
    table.write_text("path\tcaption\npictures/0.PNG\ta cow, brown\n", encoding="utf-8")
    make(table, tmp_path / "out", root=str(tmp_path / "raw"))
    assert [sample["txt"] for sample in samples(tmp_path / "out" / "train" / "image-text")] == [b"a cow, brown"]


def test_validation_keeps_equal_pictures_together_and_is_stable(tmp_path):
    table = pairs(tmp_path / "raw", 30)
    rows = list(csv.reader(table.open(encoding="utf-8")))[1:]
    write_table(table, [*rows, *[[path, caption + " again"] for path, caption in rows]])
    chosen = []
    for out in (tmp_path / "a", tmp_path / "b"):
        make(table, out, split="0.7,0.3")
        chosen.append({split: {s["png"] for s in samples(out / split / "image-text")} for split in ("train", "val")})
    assert chosen[0] == chosen[1]
    assert not chosen[0]["train"] & chosen[0]["val"]
    assert len(chosen[0]["train"] | chosen[0]["val"]) == 30
    assert 3 <= len(chosen[0]["val"]) <= 16


def test_text_alone_needs_no_files(tmp_path):
    table = write_table(tmp_path / "t.csv", [["x", "one cow"], ["x", "two dogs"]])
    make(table, tmp_path / "out", columns={"image": None})
    assert {sample["txt"] for sample in samples(tmp_path / "out" / "train" / "text")} == {b"one cow", b"two dogs"}


def test_bad_rows_are_listed_with_line_and_reason_and_nothing_is_written(tmp_path):
    table = pairs(tmp_path / "raw", 2)
    pictures = tmp_path / "raw" / "pictures"
    (pictures / "cut.png").write_bytes(png(0)[:40])
    (pictures / "x.xcf").write_bytes(b"BM")
    (pictures / "note.txt").write_text("not a picture")
    rows = [
        ["pictures/0.PNG", "fine"],
        ["pictures/gone.png", "missing"],
        ["pictures/cut.png", "truncated"],
        ["pictures/0.PNG", "  "],
        ["pictures/0.PNG", "!!!"],
        ["pictures/x.xcf", "ending"],
        ["pictures/note.txt", "modality"],
        ["pictures/0.PNG", "a cow", " unquoted"],
    ]
    write_table(table, rows)
    with pytest.raises(ValueError, match="7 of 8 samples cannot be used") as caught:
        make(table, tmp_path / "out")
    said = str(caught.value)
    for part in (
        "line 3: ",
        "gone.png",
        "line 4: ",
        "cannot decode",
        "line 5: nothing in column 'caption'",
        "line 6: ",
    ):
        assert part in said
    assert "line 7: " in said
    assert "as image a file named *.jpg" in said
    assert "line 9: more than 2 values" in said
    assert not (tmp_path / "out").exists()


def test_only_ten_bad_rows_are_shown(tmp_path):
    table = write_table(tmp_path / "t.csv", [[f"{index}.png", "gone"] for index in range(13)])
    with pytest.raises(ValueError, match="and 3 more") as caught:
        make(table, tmp_path / "out")
    assert str(caught.value).count("line ") == 10


def test_skip_bad_leaves_them_out_and_says_so(tmp_path, capsys):
    table = pairs(tmp_path / "raw", 3)
    (tmp_path / "raw" / "pictures" / "1.PNG").unlink()
    make(table, tmp_path / "out", skip_bad=True)
    assert len(samples(tmp_path / "out" / "train" / "image-text")) == 2
    assert "1 of 3 samples cannot be used" in capsys.readouterr().out


def test_wrong_columns_are_told_with_those_there_are(tmp_path):
    table = pairs(tmp_path / "raw", 1)
    with pytest.raises(ValueError, match=r"no column 'file'.*'path', 'caption'"):
        make(table, tmp_path / "out", columns={"image": "file"})
    with pytest.raises(ValueError, match=r"0\.PNG: as audio a file named \*\.flac"):
        make(table, tmp_path / "out", columns={"audio": "path"})
    with pytest.raises(ValueError, match="no column is named"):
        make(table, tmp_path / "out", columns={"image": None, "text": None})


@pytest.mark.parametrize(
    ("options", "said"),
    [({"split": "1.0"}, "split is '1.0'"), ({"split": "0.5,0.4"}, "1 together"), ({"vocab_size": 10}, "10")],
)
def test_impossible_settings_leave_nothing_behind(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        make(pairs(tmp_path / "raw"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_existing_shards_are_not_overwritten_and_an_existing_tokenizer_is_kept(tmp_path, capsys):
    table, out = pairs(tmp_path / "raw"), tmp_path / "out"
    make(table, out)
    with pytest.raises(ValueError, match="exist already"):
        make(table, out)
    before = load_tokenizer(out / "tokenizer").fingerprint()
    make(write_table(tmp_path / "t.csv", [["x", "quite other words"]]), out, columns={"image": None})
    assert load_tokenizer(out / "tokenizer").fingerprint() == before
    assert "kept as it is" in capsys.readouterr().out


def test_folder_of_pairs_in_sub_folders(tmp_path, capsys):
    raw = tmp_path / "raw"
    for name, hertz in (("farm/cow", 100), ("farm/big.dog", 200), ("town/cow", 300)):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / f"{name}.wav").write_bytes(wav(hertz))
        (raw / f"{name}.txt").write_text(f"a {name}")
    (raw / "Thumbs.db").write_bytes(b"?")
    from_folder(str(raw), out=str(tmp_path / "out"), vocab_size=VOCAB)
    found = {sample["txt"].decode(): sample["wav"] for sample in samples(tmp_path / "out" / "train" / "audio-text")}
    assert found == {"a farm/cow": wav(100), "a farm/big.dog": wav(200), "a town/cow": wav(300)}
    assert "left out: 1 with .db" in capsys.readouterr().out


def test_folder_of_one_modality_has_no_tokenizer(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.png").write_bytes(png(1))
    from_folder(str(tmp_path / "raw"), out=str(tmp_path / "out"))
    assert len(samples(tmp_path / "out" / "train" / "image")) == 1
    assert not (tmp_path / "out" / "tokenizer").exists()


def test_mixed_folder_is_refused_with_counts(tmp_path):
    for name in ("a.png", "b.png", "c.png", "c.txt"):
        (tmp_path / name).write_bytes(png(1) if name.endswith("png") else b"a thing")
    with pytest.raises(ValueError, match=r"2 of image \(such as a\); 1 of image \+ text \(such as c\)"):
        from_folder(str(tmp_path), out=str(tmp_path / "out"))


def test_two_pictures_of_one_stem_are_refused(tmp_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(png(1))
    with pytest.raises(ValueError, match="one file of each modality"):
        from_folder(str(tmp_path), out=str(tmp_path / "out"))


def test_folder_without_usable_files(tmp_path):
    (tmp_path / "a.xcf").write_bytes(b"gimp")
    with pytest.raises(ValueError, match="holds no file that ends in"):
        from_folder(str(tmp_path), out=str(tmp_path / "out"))


def test_manifest_is_rebuilt_from_the_shards(tmp_path):
    make(pairs(tmp_path / "raw"), tmp_path / "out", source="mine", license="CC0")
    stream = tmp_path / "out" / "train" / "image-text"
    before = read_manifest(stream)
    (stream / "manifest.json").write_text(json.dumps({"source": "mine", "license": "CC0"}))
    assert manifest(str(stream)).fingerprint() == before.fingerprint()
    assert (read_manifest(stream).data_type, read_manifest(stream).license) == ("image-text", "CC0")
    (stream / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON object"):
        manifest(str(stream))


def test_manifest_of_no_shards(tmp_path):
    with pytest.raises(ValueError, match="no shards"):
        manifest(str(tmp_path))
    (tmp_path / "0.tar").write_bytes(b"not a tar")
    with pytest.raises(ValueError, match="damaged"):
        manifest(str(tmp_path))


def test_links_are_followed_and_hidden_folders_left_out(tmp_path):
    for name in ("a/x0", "a/.ipynb_checkpoints/x0-checkpoint", "real/y0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(png(len(name)))
        (tmp_path / f"{name}.txt").write_bytes(b"\xef\xbb\xbfbell " + name.encode())
    (tmp_path / "a" / "more").symlink_to("../real")
    from_folder(str(tmp_path / "a"), out=str(tmp_path / "out"), vocab_size=VOCAB)
    found = samples(tmp_path / "out" / "train" / "image-text")
    about = {(kept := json.loads(sample["json"]))["from"]: kept["files"] for sample in found}
    assert about == {stem: {"image": f"{stem}.png", "text": f"{stem}.txt"} for stem in ("x0", "more/y0")}


def test_a_name_that_is_no_utf_8_is_named_and_can_be_left_out(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.png").write_bytes(png(1))
    (tmp_path / "raw" / os.fsdecode(b"caf\xe9.png")).write_bytes(png(2))
    with pytest.raises(ValueError, match=r"caf\\xe9: .*caf\\xe9\.png is no UTF-8; rename"):
        from_folder(str(tmp_path / "raw"), out=str(tmp_path / "out"))
    from_folder(str(tmp_path / "raw"), out=str(tmp_path / "out"), skip_bad=True)
    assert len(samples(tmp_path / "out" / "train" / "image")) == 1


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        from_folder(str(tmp_path / "nowhere"), out=str(tmp_path / "out"))


def test_an_unclosed_quote_stops_with_its_line(tmp_path):
    table = pairs(tmp_path / "raw", 12)
    table.write_text(table.read_text().replace("thing number 7", '"good night'))
    with pytest.raises(ValueError, match="line 9: a quote"):
        make(table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_long_caption_and_one_without_a_visible_character(tmp_path):
    table = pairs(tmp_path / "raw", 2)
    table.write_text(table.read_text().replace("thing number 0", "bell " * 30_000).replace("thing number 1", "\u200b"))
    with pytest.raises(ValueError, match=r"1 of 2 samples cannot be used:\n.*line 3: caption '\\u200b' has no words"):
        make(table, tmp_path / "out")
    make(table, tmp_path / "out", skip_bad=True)
    assert [sample["txt"] for sample in samples(tmp_path / "out" / "train" / "image-text")] == [b"bell " * 30_000]


def test_manifest_of_shards_from_elsewhere(tmp_path):
    def tar(name, members, mode="w"):
        (tmp_path / name).mkdir()
        with tarfile.open(tmp_path / name / "0.tar", mode) as archive:
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return tmp_path / name

    pair = [("d/IMG_1.PNG", png(1)), ("d/IMG_1.TXT", b"bell")]
    mac = [("d/.DS_Store", b"x"), ("./d/._IMG_1.PNG", b"x"), ("__MACOSX/d/IMG_1.PNG", b"x"), *pair]
    assert manifest(str(tar("upper", pair))).samples == 1
    assert manifest(str(tar("mac", mac))).samples == 1
    with pytest.raises(ValueError, match=r"0\.tar is compressed \(gzip\).*decompress it"):
        manifest(str(tar("gz", pair, "w:gz")))
    (tmp_path / "gz" / "0.tar").rename(tmp_path / "gz" / "0.tar.gz")
    with pytest.raises(ValueError, match=r"0\.tar\.gz"):
        manifest(str(tmp_path / "gz"))
    two = tar("two", pair)
    other = tar("other", [("d/2.png", png(2)), ("d/2.txt", b"drum")])
    with (two / "0.tar").open("ab") as stream:
        stream.write((other / "0.tar").read_bytes())
    assert manifest(str(two)).samples == 2
    (two / "0.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ValueError, match="Git LFS pointer"):
        manifest(str(two))
