"""Publishing: the real huggingface_hub client against a server on this machine that speaks the Hub's endpoints."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hf_ext.catalog import METHODS
from hf_ext.cli import main
from hf_ext.publishing import MODULE, card_problems, stage
from tests.pipelines.test_pixart_delta import make as tiny_pipeline
from tests.tiny import TINY

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: time-series-forecasting
tags:
- arxiv:2310.06625
---

# A small model
"""


class Hub:
    """Repositories in memory. A commit replaces a repository's files at once, as on the Hub."""

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refuse: str | None = None  # a part of a path that answers 500

    def commit_id(self, repo):
        return hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()

    def commit(self, repo, lines):
        files = dict(self.repos[repo])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        self.repos[repo] = files


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, status=200, content=b"", headers=()):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_request(self):
        path = unquote(urlsplit(self.path).path)
        body = self.body()
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.refuse and self.hub.refuse in path:
            return self.reply(403, {"error": "not today"})
        for method, pattern, answer in ROUTES:
            if self.command == method and (match := re.fullmatch(pattern, path)):
                return answer(self, body, *match.groups())
        return self.reply(404, {"error": path}, {"X-Error-Code": "RepoNotFound"})

    do_GET = do_POST = do_PUT = do_HEAD = handle_request

    @property
    def url(self):
        return f"http://{self.headers['Host']}"

    def create(self, body):
        wanted = json.loads(body)
        repo = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        if repo in self.hub.repos:
            return self.reply(409, {"error": "exists", "url": f"{self.url}/{repo}"})
        self.hub.repos[repo] = {}
        self.hub.private[repo] = wanted.get("visibility") == "private"
        return self.reply(200, {"url": f"{self.url}/{repo}"})

    def validate_yaml(self, body):
        self.reply(200, {"errors": [], "warnings": []})

    def preupload(self, body, repo, revision):
        modes = {
            file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular"
            for file in json.loads(body)["files"]
        }
        files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        self.reply(200, {"files": files})

    def batch(self, body, repo):
        objects = [
            {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{self.url}/lfs/{o['oid']}"}}}
            for o in json.loads(body)["objects"]
        ]
        self.reply(200, {"transfer": "basic", "objects": objects})

    def put_object(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.reply(200)

    def take_commit(self, body, repo, revision):
        self.hub.commit(repo, [json.loads(line) for line in body.splitlines() if line])
        oid = self.hub.commit_id(repo)
        self.reply(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repo}/commit/{oid}"})

    def info(self, body, repo):
        if repo not in self.hub.repos:
            return self.reply(404, {"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": name} for name in self.hub.repos[repo]]
        facts = {"id": repo, "modelId": repo, "sha": self.hub.commit_id(repo), "siblings": siblings, "tags": []}
        return self.reply(200, facts)

    def tree(self, body, repo, revision):
        files = self.hub.repos[repo].items()
        entries = [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in files]
        self.reply(200, entries)

    def resolve(self, body, repo, revision, name):
        if repo not in self.hub.repos:
            return self.reply(404, {"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"})
        headers = {"X-Repo-Commit": self.hub.commit_id(repo)}
        if name not in self.hub.repos[repo]:
            return self.reply(404, {"error": "no such file"}, headers | {"X-Error-Code": "EntryNotFound"})
        content = self.hub.repos[repo][name]
        return self.reply(200, content, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", rf"/api/models/{REPO}/preupload/([\w.-]+)", Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/([0-9a-f]+)", Handler.put_object),
    ("POST", rf"/api/models/{REPO}/commit/([\w.-]+)", Handler.take_commit),
    ("GET", rf"/api/models/{REPO}(?:/revision/[\w.-]+)?", Handler.info),
    ("GET", rf"/api/models/{REPO}/tree/([\w.-]+)", Handler.tree),
    ("HEAD", rf"/{REPO}/resolve/([\w.-]+)/(.+)", Handler.resolve),
    ("GET", rf"/{REPO}/resolve/([\w.-]+)/(.+)", Handler.resolve),
]


@contextmanager
def serving(hub):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def save(slug, model_class, folder):
    """A tiny model with its card in `folder`, and what it computes."""
    torch.manual_seed(0)
    config, inputs = TINY[slug]()
    model = METHODS[slug].load(model_class)(config).eval()
    model.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    torch.save(inputs, folder.parent / f"{folder.name}-inputs.pt")
    with torch.no_grad():
        return model(**inputs)[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("publishing")


@pytest.fixture(scope="module")
def expected(place):
    """Three folders: a forecaster, a super-resolution model with a processor of its own, and a Diffusers pipeline."""
    outputs = {
        "forecast": save("itransformer", "ITransformerForPrediction", place / "forecast"),
        "pictures": save("hat", "HatForImageSuperResolution", place / "pictures"),
    }
    METHODS["hat"].load("HatImageProcessor")().save_pretrained(place / "pictures")
    tiny_pipeline().save_pretrained(place / "drawing")
    (place / "drawing" / "README.md").write_text(CARD)
    return outputs


def run(code, endpoint, place):
    """Runs Python in a fresh process that knows only the local Hub."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(place / "home"),
        "HF_TOKEN": "nobody",
        "HF_HUB_DISABLE_XET": "1",
    }
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment["NO_PROXY"] = "127.0.0.1"
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


PUBLISH = """
from hf_ext.cli import main
statuses = [
    main(["publish", "forecast", "--repo", "org/forecast"]),
    main(["publish", "forecast", "--repo", "org/forecast"]),
    main(["publish", "pictures", "--repo", "org/pictures", "--private"]),
    main(["publish", "drawing", "--repo", "org/drawing"]),
    main(["publish", "forecast", "--repo", "org/kept"]),
    main(["publish", "forecast", "--repo", "org/dry", "--dry-run"]),
]
print("statuses", statuses)
"""

LOAD_MODEL = """
import sys
import torch
from transformers import AutoModelForTimeSeriesPrediction
assert "hf_ext" not in sys.modules
model = AutoModelForTimeSeriesPrediction.from_pretrained("org/forecast", trust_remote_code=True).eval()
with torch.no_grad():
    torch.save(model(**torch.load("forecast-inputs.pt"))[1], "forecast-outputs.pt")
model.save_pretrained("again")
again = AutoModelForTimeSeriesPrediction.from_pretrained("again", trust_remote_code=True)
assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
print(type(model).__mro__[1].__module__)
"""

LOAD_OTHERS = """
import sys
import torch
from diffusers import DiffusionPipeline
from transformers import AutoImageProcessor, AutoModelForImageToImage
assert "hf_ext" not in sys.modules
processor = AutoImageProcessor.from_pretrained("org/pictures", trust_remote_code=True)
processor.save_pretrained("processor-again")
model = AutoModelForImageToImage.from_pretrained("org/pictures", trust_remote_code=True).eval()
with torch.no_grad():
    torch.save(model(**torch.load("pictures-inputs.pt"))[1], "pictures-outputs.pt")
pipeline = DiffusionPipeline.from_pretrained("org/drawing", trust_remote_code=True)
print(type(processor).__mro__[1].__module__, type(pipeline).__mro__[1].__module__)
"""


@pytest.fixture(scope="module")
def published(place, expected):
    """The Hub after publishing, what the command printed, and what a fresh process loaded from it."""
    hub = Hub()
    hub.repos["org/kept"] = {"README.md": b"the last good state"}
    hub.refuse = "org/kept/commit"
    with serving(hub) as endpoint:
        process = run(PUBLISH, endpoint, place)
        loaded = " ".join(run(code, endpoint, place).stdout.splitlines()[-1] for code in (LOAD_MODEL, LOAD_OTHERS))
    return hub, process, loaded.split()


def test_publish_uploads_the_folder_in_one_commit(published, place):
    hub, process, _ = published
    assert "statuses [0, 0, 0, 0, 1, 0]" in process.stdout
    files = hub.repos["org/forecast"]
    assert sorted(files) == ["README.md", "config.json", f"{MODULE}.py", "model.safetensors"]
    assert files["model.safetensors"] == (place / "forecast" / "model.safetensors").read_bytes()
    assert hub.requests.count("POST /api/models/org/pictures/commit/main") == 1
    assert hub.private == {"org/forecast": False, "org/pictures": True, "org/drawing": False}


def test_refused_commit_is_one_line_and_leaves_the_repository(published):
    hub, process, _ = published
    assert hub.repos["org/kept"] == {"README.md": b"the last good state"}
    errors = [line for line in process.stderr.splitlines() if line.startswith("hf-ext: ")]
    assert len(errors) == 1 and "403" in errors[0]
    assert "Traceback" not in process.stderr


def test_dry_run_asks_the_hub_for_nothing(published):
    hub, process, _ = published
    assert "would be uploaded to org/dry" in process.stdout
    assert not any("org/dry" in request for request in hub.requests)


@pytest.mark.parametrize("name", ["forecast", "pictures"])
def test_remote_code_gives_equal_outputs_without_importing_us(published, expected, place, name):
    torch.testing.assert_close(torch.load(place / f"{name}-outputs.pt"), expected[name], atol=0, rtol=0)


def test_remote_code_finds_our_classes(published):
    _, _, modules = published
    assert modules == [
        "hf_ext.models.itransformer.modeling_itransformer",
        "hf_ext.models.hat.image_processing_hat",
        "hf_ext.pipelines.pixart_delta",
    ]


@pytest.fixture
def folder(tmp_path):
    """A folder that may be published."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text('{"model_type": "itransformer"}')
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
    return folder


def test_good_folder_is_staged(folder, tmp_path):
    (folder / ".cache").mkdir()
    names = [upload.path for upload in stage(folder, tmp_path / "staged")]
    assert names == ["README.md", "config.json", f"{MODULE}.py", "model.safetensors"]
    assert "auto_map" not in (folder / "config.json").read_text()


def test_upstream_model_needs_no_remote_code(folder, tmp_path):
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert f"{MODULE}.py" not in [upload.path for upload in stage(folder, tmp_path / "staged")]


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.ready], ids=lambda method: method.slug)
def test_every_card_has_the_metadata_that_the_hub_asks_for(method):
    assert list(card_problems(method.card)) == []


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.checkpoint], ids=lambda method: method.slug)
def test_every_shipped_checkpoint_can_be_published(method, tmp_path):
    """With the module that imports hf_ext, unless what a recipe left is a plain model of Transformers, which needs none"""
    config = method.card / "config.json"
    plain = config.is_file() and json.loads(config.read_text())["model_type"] in CONFIG_MAPPING_NAMES
    assert (f"{MODULE}.py" in [upload.path for upload in stage(method.card, tmp_path / "staged")]) != plain


def test_publishing_offline_is_one_error(folder, capsys):
    assert main(["publish", str(folder), "--repo", "org/name"]) == 1
    assert "offline" in capsys.readouterr().err


BAD_FILES = [
    ("pytorch_model.bin", b"anything", "can run code"),
    ("nested/optimizer.pt", b"anything", "can run code"),
    ("model.safetensors", b"\x00" * 20, "model.safetensors"),
    ("notes.md", b"token: hf_" + b"a" * 34, "a Hugging Face token"),
    ("key.txt", b"-----BEGIN RSA PRIVATE KEY-----", "a private key"),
    ("config.json", b"{", "not JSON"),
    ("README.md", CARD.replace("license: apache-2.0\n", "").encode(), "no license"),
    ("README.md", CARD.replace("pipeline_tag", "pipeline").encode(), "no pipeline_tag"),
    ("README.md", CARD.replace("- arxiv:2310.06625\n", "").encode(), "no tags"),
    ("README.md", b"---\nlicense: [\n---\n", "cannot be read"),
    ("README.md", CARD.replace("tags:", "model-index: [{name: x}]\ntags:").encode(), "cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES, ids=[f"{name}-{m}" for name, _, m in BAD_FILES])
def test_unfit_folder_is_refused(folder, tmp_path, name, content, message):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        stage(folder, tmp_path / "staged")


@pytest.mark.parametrize("name", ["README.md", "config.json"])
def test_folder_without_card_or_config_is_refused(folder, tmp_path, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        stage(folder, tmp_path / "staged")
