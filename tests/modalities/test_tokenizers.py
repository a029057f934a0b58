import copy
import io
import json
import pickle
from pathlib import Path

import pytest
import sentencepiece
from tokenizers.pre_tokenizers import ByteLevel

from onepeace_lightning.modalities.tokenizers import (
    GPT2BPETokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
    tokenizer_from_files,
)
from onepeace_lightning.modalities.tokenizers.base import EOS, clean_caption, clean_text, whole_strings

SHARED = Path(__file__).parents[3] / "shared"
CAPTIONS = [
    f"{count} {size} {thing}"
    for count in ("two", "three", "four")
    for size in ("small", "big")
    for thing in ("bells", "drums", "clocks", "vögel", "колокола", "鐘と犬")
]


@pytest.fixture(scope="module")
def pieces():
    return SentencePieceTokenizer.train(CAPTIONS, 500)


def write_tiny_bpe(folder):
    """Bytes, and merges for " cow" and "s"; the dictionary lists the ids backwards, with a filler at the end."""
    tokens = [*sorted(ByteLevel.alphabet()), "co", "cow", "Ġcow"]
    (folder / "encoder.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\nc o\nco w\nĠ cow\n", encoding="utf-8")
    lines = [f"{index} {count}" for count, index in enumerate(reversed(range(len(tokens))))]
    (folder / "dict.txt").write_text("\n".join([*lines, "madeupword0000 0"]) + "\n")
    return tokens


@pytest.fixture
def bpe_folder(tmp_path):
    folder = tmp_path / "bpe"
    folder.mkdir()
    write_tiny_bpe(folder)
    return folder


@pytest.fixture(params=["sentencepiece", "bpe"])
def tokenizer(request, pieces, bpe_folder):
    return pieces if request.param == "sentencepiece" else load_tokenizer(bpe_folder)


def test_published_vocabulary_gives_the_golden_ids():
    if not (SHARED / "bpe" / "dict.txt").is_file() or not (SHARED / "goldens" / "bpe.json").is_file():
        pytest.skip("the published BPE files and their goldens are not beside this checkout")
    tokenizer = load_tokenizer(SHARED / "bpe")
    assert tokenizer.vocab_size == 50264
    for golden in json.loads((SHARED / "goldens" / "bpe.json").read_text(encoding="utf-8")):
        encoding = tokenizer.encode(golden["text"])
        assert encoding.ids == golden["ids"], golden["text"]
        assert encoding.word_starts == [bool(flag) for flag in golden["word_start"]], golden["text"]
    assert tokenizer.decode(tokenizer.encode("Naïve café — 東京 🐄").ids) == "naïve café — 東京 🐄"


def test_bpe_ids_are_dictionary_lines_after_the_special_ids(tmp_path):
    tokens = write_tiny_bpe(tmp_path)
    tokenizer = load_tokenizer(tmp_path)

    def to_id(token):
        return 4 + len(tokens) - 1 - tokens.index(token)

    encoding = tokenizer.encode("Cow cows")
    assert isinstance(tokenizer, GPT2BPETokenizer)
    assert encoding.ids == [to_id("Ġcow"), to_id("Ġcow"), to_id("s"), EOS]
    assert encoding.word_starts == [True, True, False, True]
    assert tokenizer.vocab_size == 4 + len(tokens) + 1
    assert tokenizer.decode(encoding.ids) == "cow cows"
    filler = tokenizer.vocab_size - 1
    assert tokenizer.decode([filler, *encoding.ids]) == "cow cows"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("...COW!", "cow!"),
        ("?*#:;~!,.cow", "cow"),
        ("  cow  \t cow\tcow  ", "cow cow cow"),
        ("cow\n\n", "cow"),
        ("cow\n", "cow"),
        ("cow \n cow", "cow cow"),
        ("cow\ncow", "cow\ncow"),
        (" .cow", ".cow"),
        ("-cow", "-cow"),
    ],
)
def test_clean_up(bpe_folder, text, clean):
    tokenizer = load_tokenizer(bpe_folder)
    assert tokenizer.decode(tokenizer.encode(text).ids) == clean


@pytest.mark.parametrize("text", ["", "   ", "\n", "!?...", "...\t", "\u00a0"])
def test_caption_without_words_is_refused(tokenizer, text):
    with pytest.raises(ValueError, match="no words after clean-up") as error:
        tokenizer.encode(text)
    assert repr(text) in str(error.value)


def test_long_captions_are_cut_before_eos(tokenizer):
    tokenizer = type(tokenizer).from_files(tokenizer.to_files())
    whole = tokenizer.encode("cow " * 69 + "cow")
    tokenizer.max_length = 5
    cut = tokenizer.encode("cow " * 69 + "cow")
    assert len(whole.ids) <= 71
    assert cut.ids == [*whole.ids[:5], EOS]
    assert cut.word_starts == [*whole.word_starts[:5], True]
    assert type(tokenizer).from_files(tokenizer.to_files()).max_length == 5


def test_default_length_is_70_tokens_and_eos(tokenizer):
    encoding = tokenizer.encode("cow " * 200)
    assert len(encoding.ids) == len(encoding.word_starts) == 71
    assert encoding.ids[-1] == EOS


def test_tokenizers_survive_pickling_copying_and_saving(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    (tmp_path / "new" / "folder" / "model.safetensors").write_bytes(b"not ours")
    copies = [
        pickle.loads(pickle.dumps(tokenizer)),
        copy.deepcopy(tokenizer),
        load_tokenizer(tmp_path / "new" / "folder"),
        tokenizer_from_files(tokenizer.to_files()),
    ]
    for twin in copies:
        assert type(twin) is type(tokenizer)
        assert twin.encode("three big cows") == tokenizer.encode("three big cows")
        assert (twin.vocab_size, twin.max_length) == (tokenizer.vocab_size, tokenizer.max_length)
        assert twin.fingerprint() == tokenizer.fingerprint()


def test_fingerprint_tells_vocabularies_and_lengths_apart(pieces, bpe_folder):
    other = SentencePieceTokenizer.train([*CAPTIONS, "a zebra"], 500)
    shorter = SentencePieceTokenizer.train(CAPTIONS, 500, max_length=12)
    fingerprints = {tokenizer.fingerprint() for tokenizer in (pieces, other, shorter, load_tokenizer(bpe_folder))}
    assert len(fingerprints) == 4


def test_sentencepiece_learns_the_words_of_a_small_corpus(pieces):
    encoding = pieces.encode("Three big drums")
    assert len(encoding.ids) == 4
    assert encoding.word_starts == [True] * 4
    assert pieces.encode("drumsmall").word_starts.count(True) == 2
    assert pieces.vocab_size < 500
    assert max(id_ for caption in CAPTIONS for id_ in pieces.encode(caption).ids) < pieces.vocab_size


def test_sentencepiece_training_is_deterministic(pieces):
    assert SentencePieceTokenizer.train(iter(CAPTIONS), 500).to_files() == pieces.to_files()


@pytest.mark.parametrize("text", [*CAPTIONS[:6], "ελληνικά", "عربي", "never 見た 🐄 before"])
def test_sentencepiece_covers_every_language(pieces, text):
    encoding = pieces.encode(text)
    assert min(encoding.ids[:-1]) > 3
    assert pieces.decode(encoding.ids) == text


def test_sentencepiece_refuses_what_it_cannot_train():
    with pytest.raises(ValueError, match="cannot train 100 pieces on 36 captions"):
        SentencePieceTokenizer.train(CAPTIONS, 100)
    with pytest.raises(ValueError, match="no captions to train"):
        SentencePieceTokenizer.train(["", "!?"], 500)


def test_sentencepiece_training_passes_over_captions_without_words(pieces):
    assert SentencePieceTokenizer.train(["", "...", *CAPTIONS], 500).fingerprint() == pieces.fingerprint()


def test_sentencepiece_refuses_other_special_ids():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    with pytest.raises(ValueError, match=r"bos, pad, eos, unk are \(1, -1, 2, 0\)"):
        SentencePieceTokenizer(model.getvalue())


@pytest.mark.parametrize("name", ["dict.txt", "encoder.json", "vocab.bpe"])
def test_missing_bpe_file_names_itself(bpe_folder, name):
    (bpe_folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {name}"):
        load_tokenizer(bpe_folder)


def test_folder_without_a_tokenizer_says_what_was_expected(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match=r"sentencepiece\.model .* dict\.txt, encoder\.json, vocab\.bpe"):
            load_tokenizer(folder)


def test_folder_with_two_tokenizers_is_refused(pieces, bpe_folder):
    pieces.save(bpe_folder)
    with pytest.raises(ValueError, match="holds two tokenizers"):
        load_tokenizer(bpe_folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dict.txt", "0 5\n1 5\n", r"dict\.txt lacks 257 BPE ids .* such as \[2, 3"),
        ("dict.txt", "nonsense\n", "line 'nonsense' is no entry"),
        ("vocab.bpe", "#version: 0.2\nnonsense\n", "line 'nonsense' is no merge"),
        ("encoder.json", '{"a": 0}', "lacks 255 of the 256 byte tokens"),
        ("tokenizer_settings.json", '{"length": 9}', "expected one entry"),
        ("tokenizer_settings.json", '{"max_length": 0}', "max_length is 0"),
    ],
)
def test_malformed_files_are_refused(bpe_folder, name, content, message):
    (bpe_folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(bpe_folder)


def test_decode_refuses_foreign_ids(tokenizer):
    with pytest.raises(ValueError, match=f"outside this vocabulary of {tokenizer.vocab_size}"):
        tokenizer.decode([tokenizer.vocab_size])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bell \ud83d", "bell"),
        ("\ude00bell", "bell"),
        ("a \ud83dbell", "a bell"),
        ("bell \ud83d\ude00", "bell \N{GRINNING FACE}"),
        ("bell \N{GRINNING FACE}", "bell \N{GRINNING FACE}"),
    ],
)
def test_halves_of_characters_are_joined_or_left_out(tokenizer, text, expected):
    assert clean_text(text) == expected
    assert tokenizer.encode(text).ids == tokenizer.encode(expected).ids


@pytest.mark.parametrize(
    "text",
    ["\u200b", "\ufeff", "\u2060 \u200d", "\u202a\u202c", "\ufe0f", "\u3164", "\u2800", "\x07", "\u00ad", "\ud83d"],
)
def test_a_text_that_shows_nothing_has_no_words(tokenizer, text):
    with pytest.raises(ValueError, match="no words"):
        clean_caption(text)
    with pytest.raises(ValueError, match="no words"):
        tokenizer.encode(text)


@pytest.mark.parametrize("text", ["7", "\N{DOG FACE}", "犬", "µ", "(", "é", "ﷺ"])
def test_a_text_that_shows_something_is_kept(text):
    assert clean_caption(text)


def test_strings_of_json_are_made_whole_at_any_depth():
    content = json.loads('{"captions": ["bell \\ud83d", "\\ud83d\\ude00"], "n": 1, "answers": {"ye\\ud83ds": null}}')
    assert whole_strings(content) == {"captions": ["bell ", "\N{GRINNING FACE}"], "n": 1, "answers": {"yes": None}}


def test_pieces_are_what_the_ids_stand_for(tokenizer):
    ids = tokenizer.encode("cows ☂ bells").ids
    assert b"".join(tokenizer.pieces()[index] for index in ids) == " cows ☂ bells".encode()
    assert len(tokenizer.pieces()) == tokenizer.vocab_size
    assert tokenizer.pieces()[:4] == [b""] * 4
