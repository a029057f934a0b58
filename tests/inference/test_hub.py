"""Publishing a model and opening it again, through the real client and a hub on this machine; the model card."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import lightning as L
import pytest
import torch
from huggingface_hub import ModelCard, constants

from onepeace_lightning import OnePeace
from onepeace_lightning.checkpoints.card import CARD_FILE
from onepeace_lightning.tasks.pretrain import PretrainTask
from onepeace_lightning.training.record import RunRecord
from tests.inference.conftest import tiny_onepeace


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as publishing and fetching need; commits by repository and revision."""

    repositories: dict

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            if asked.get("organization") == "others":
                return self.reply({"error": "You don't have the rights"}, status=403)
            owner = asked.get("organization") or "me"
            self.repositories.setdefault(f"{owner}/{asked['name']}", {"main": {}})
            return self.reply({"url": f"{constants.ENDPOINT}/{owner}/{asked['name']}"})
        if path == "/api/validate-yaml":
            return self.reply({"warnings": [], "errors": []})
        name, action, revision = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(\w+)/(.+)", path).groups()
        branches = self.repositories[name]
        if action == "branch":
            branches.setdefault(revision, dict(branches["main"]))
            return self.reply({})
        if action == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            return self.reply({
                "files": [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
            })  # fmt: skip
        assert action == "commit"
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                branches[revision][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = digest(branches[revision])
        return self.reply({"commitUrl": f"{constants.ENDPOINT}/{name}/commit/{sha}", "commitOid": sha})

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            name, action, revision = found.groups()
            if (files := self.files(name, revision)) is None:
                return self.missing(name)
            if action == "tree":
                entries = [{"type": "file", "path": k, "size": len(v), "oid": digest({k: v})} for k, v in files.items()]
                return self.reply(entries)
            return self.reply({"id": name, "sha": digest(files), "siblings": [{"rfilename": file} for file in files]})
        if (found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)) is None:
            return self.reply({"error": f"no {path}"}, status=404)
        name, revision, file = found.groups()
        files = self.files(name, revision)
        return self.reply(files[file], **{"ETag": f'"{digest({file: files[file]})}"', "X-Repo-Commit": digest(files)})

    do_HEAD = do_GET

    def files(self, name, revision):
        branches = self.repositories.get(name, {})
        return branches.get(revision) or next((f for f in branches.values() if digest(f) == revision), None)

    def missing(self, name):
        code = "RevisionNotFound" if name in self.repositories else "RepoNotFound"
        return self.reply({"error": "not found"}, status=404, **{"X-Error-Code": code})

    def reply(self, content, status=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": len(data), "Content-Type": "application/json", **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


def digest(files):
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    handler = type("Handler", (Hub,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler.repositories
    server.shutdown()
    server.server_close()


def test_what_is_pushed_is_opened_again_by_name_and_revision(hub):
    first, second = tiny_onepeace(seed=0), tiny_onepeace(seed=1)
    url = first.push_to_hub("me/tiny")
    assert "/me/tiny/commit/" in url
    second.push_to_hub("me/tiny", revision="trained-longer", message="Another")
    assert set(hub["me/tiny"]) == {"main", "trained-longer"}
    for model, revision in ((first, None), (second, "trained-longer"), (first, url.rpartition("/")[2])):
        again = OnePeace.from_pretrained("me/tiny", revision=revision, device="cpu")
        for name, weight in model.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], weight)
        assert again.tokenizer.fingerprint() == model.tokenizer.fingerprint()
    with pytest.raises(ValueError, match=r"did not give a model of that name at revision 'v9'.*hf download"):
        OnePeace.from_pretrained("me/tiny", revision="v9")
    with pytest.raises(ValueError, match=r"did not give a model of that name \(RepositoryNotFound"):
        OnePeace.from_pretrained("me/nothing")


def test_a_push_that_cannot_be_says_why(hub):
    model = tiny_onepeace()
    with pytest.raises(ValueError, match=r"name on the hub is 'tiny'; give 'owner/name'"):
        model.push_to_hub("tiny")
    with pytest.raises(ValueError, match=r"did not take others/tiny \(.*log in with 'hf auth login'"):
        model.push_to_hub("others/tiny")


def test_a_revision_is_for_names_on_the_hub(model_folder):
    with pytest.raises(ValueError, match=r"revision='v1' is for a name on the hub"):
        OnePeace.from_pretrained(model_folder, revision="v1")


RECORD = {
    "task": "PretrainTask",
    "steps": 440,
    "data": {
        "train.image-text": {
            "data_type": "image-text", "samples": 1200, "source": "made | here", "license": "CC0-1.0",
            "fingerprint": "0123456789abcdef", "chance": None,
        },
        "val.image-text": {
            "data_type": "image-text", "samples": 64, "source": "made here", "license": "CC0-1.0",
            "fingerprint": "fedcba9876543210",
            "chance": {"metric": "R@1", "percent": 1.5, "definition": "one of 64"},
        },
    },
    "scores": {"image_to_text/R@1": 55.5, "chance/image_to_text/R@1": 1.56, "accuracy": 7.0},
    "percent": True,
    "measured_at": 400,
    "command": "onepeace fit --config pretrain/toy --ckpt_path last --run mine",
    "versions": {"torch": "2.11.0"},
}  # fmt: skip


def test_the_card_tells_of_data_scores_sizes_and_limits_and_travels_with_the_model(tmp_path):
    model = tiny_onepeace()
    model.record = RECORD
    model.save_pretrained(tmp_path / "a")
    OnePeace.from_pretrained(tmp_path / "a", device="cpu").save_pretrained(tmp_path / "b")
    card = (tmp_path / "b" / CARD_FILE).read_text()
    assert card == (tmp_path / "a" / CARD_FILE).read_text()
    about = ModelCard(card).data
    assert about.library_name == "onepeace-lightning"
    assert {"text", "image", "audio"} <= set(about.tags)
    for said in (
        "| train.image-text | image-text | 1,200 | made \\| here | CC0-1.0 | `0123456789abcdef` |",
        "| image_to_text/R@1 | 55.50 | 1.56 |",
        "| accuracy | 7.00 |  |",
        "val.image-text: chance is 1.5 % R@1 (one of 64).",
        "after 400 steps",
        "    onepeace validate --config pretrain/toy --run mine --ckpt_path best",
        f"* {sum(p.numel() for p in model.model.parameters()):,} parameters in float32",
        "* text and audio were not paired in training",
        "* image and audio were not paired in training",
        "* It has seen 1,200 samples",
    ):
        assert said in card, said
    assert "text and image were not paired" not in card


@pytest.mark.parametrize("known", [True, False])
def test_the_card_names_the_data_of_what_the_model_started_from(tmp_path, known):
    stream = {**RECORD["data"]["train.image-text"], "data_type": "audio-text", "samples": 300, "source": "elsewhere"}
    before = {**RECORD, "task": "Earlier", "data": {"train.audio-text": stream}, "start": None}
    model = tiny_onepeace()
    model.record = {**RECORD, "start": {"source": "runs/one/best.ckpt", "record": before if known else None}}
    model.save_pretrained(tmp_path)
    card = (tmp_path / CARD_FILE).read_text()
    own = card.index("| train.image-text | image-text | 1,200 |")
    start = card.index("It started from runs/one/best.ckpt, " + ("which was" if known else "of whose data nothing is"))
    assert own < start
    assert ("| train.audio-text | audio-text | 300 | elsewhere |" in card[start:]) == known
    assert ("text and audio were not paired" in card) == (not known)
    assert (
        "image and audio were not paired in training: a search between them rests on pairs with others." in card
    ) == known
    assert ("* It has seen 1,500 samples;" in card) == known
    assert ("* It has seen 1,200 samples, and those of a model that it started from;" in card) == (not known)


def test_a_second_stage_knows_what_it_started_from(toy_root, toy_model, tmp_path):
    task = PretrainTask(
        str(toy_root / "data/toy/tokenizer"), data_types=["audio-text"], modalities=["text", "image", "audio"],
        init_from=str(toy_model), trainable=["audio"], preprocessing={"image": {"size": 96}},
    )  # fmt: skip
    run = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path, callbacks=[RunRecord()]
    )
    run.strategy.connect(task)
    task.configure_model()
    run.save_checkpoint(tmp_path / "two.ckpt")
    OnePeace.from_pretrained(tmp_path / "two.ckpt", device="cpu").save_pretrained(tmp_path / "two")
    card = (tmp_path / "two" / CARD_FILE).read_text()
    rest = card[card.index(f"It started from {toy_model}, which was trained on:") :]
    assert rest.count("| train.") == 5
    assert "PretrainTask, 2 steps" in rest


def test_a_card_of_an_unknown_run_says_so_and_a_written_one_stays(tmp_path):
    model = tiny_onepeace()
    model.save_pretrained(tmp_path)
    card = tmp_path / CARD_FILE
    assert "Nothing is recorded of the data" in card.read_text()
    model.record = RECORD
    model.save_pretrained(tmp_path)
    assert "image_to_text/R@1" in card.read_text()
    card.write_text("mine")
    model.save_pretrained(tmp_path)
    assert card.read_text() == "mine"


def test_a_run_s_checkpoint_knows_its_data_and_its_command(toy_model, tmp_path):
    OnePeace.from_pretrained(toy_model, device="cpu").save_pretrained(tmp_path)
    card = (tmp_path / CARD_FILE).read_text()
    rows = [line for line in card.splitlines() if line.startswith(("| train.", "| val."))]
    assert [row.split(" | ")[1] for row in rows] == [
        "image-text", "audio-text", "image", "audio", "text", "image-text", "audio-text", "audio-image",
    ]  # fmt: skip
    assert all("CC0" in row for row in rows)
    assert "PretrainTask, 2 steps" in card
    assert "    onepeace fit --config" in card
    assert "None are recorded." in card  # it was never validated
    assert "* image and audio were not paired in training" in card
