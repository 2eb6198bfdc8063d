"""Pretrained weights, fetched from a server in this process that answers as the Hugging Face hub does."""

import functools
import hashlib
import http.server
import json
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

import helpers
from deepjax import cli, weights, zoo
from deepjax.errors import InputError
from deepjax.weights import hub

REPOSITORY, FILE = "timm/resnet18.tv_in1k", "model.safetensors"
OLD, NEW = "1" * 40, "2" * 40  # commits
THIN = {"width": 4, "num_classes": 10}


@functools.cache
def state_dict(seed):
    network, rng = zoo.create("resnet18", **THIN), np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    return weights.to_torch(network, jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape).astype(np.float32), shapes))


class Hub:
    """Repositories with commits and names for them; what was asked; damage to do."""

    def __init__(self):
        self.files = {OLD: save(state_dict(0)), NEW: save(state_dict(1))}
        self.names = {"main": NEW, "v1": OLD, OLD: OLD, NEW: NEW}
        self.asked = []
        self.damage = lambda content: content

    def answer(self, method, path):
        """(status, headers, body) as huggingface.co gives them for large files: a redirection to another address."""
        self.asked.append((method, path))
        if path.startswith("/cdn/"):
            content = self.damage(next(c for c in self.files.values() if path.endswith(sha256(c))))
            return 200, {"ETag": '"cdn"'}, content
        repository, _, rest = path[1:].partition("/resolve/")
        revision, _, name = rest.rpartition("/")
        if repository != REPOSITORY:
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b""
        commit = self.names.get(revision.replace("%2F", "/"))
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, b""
        if name != FILE:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        content = self.files[commit]
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": f'"{sha256(content)}"',
            "ETag": '"of-the-pointer"',
            "Location": f"{self.storage}/cdn/{sha256(content)}",
        }
        return 302, headers, b""


@functools.cache
def expected(seed):
    return weights.from_torch(zoo.create("resnet18", **THIN), state_dict(seed))


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    server = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # no connection outlives its answer, so that a stopped server is gone

        def do_GET(self):
            status, headers, body = server.answer(self.command, self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format, *arguments):
            pass

    # Large files lie on another host than the hub's, or here, on another port.
    listeners = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    threads = [threading.Thread(target=listener.serve_forever) for listener in listeners]
    server.endpoint, server.storage = (f"http://127.0.0.1:{listener.server_port}" for listener in listeners)

    def stop():
        for listener, thread in zip(listeners, threads):
            if thread.is_alive():
                listener.shutdown()
                listener.server_close()
                thread.join()

    for thread in threads:
        thread.start()
    server.stop = stop
    yield server
    stop()


def load(server, **arguments):
    return weights.load_pretrained("resnet18", endpoint=server.endpoint, **THIN | arguments)


def test_fetched_once_recorded_checked_and_used_offline(server, tmp_path):
    found = load(server)
    chex.assert_trees_all_equal(found.variables, expected(1))
    assert found.preprocessing == weights.Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    folder = tmp_path / "deepjax" / "resnet18.tv_in1k" / "main"
    record = json.loads((folder / "record.json").read_text())
    digest = sha256(server.files[NEW])
    assert record == {"repository": REPOSITORY, "file": FILE, "revision": NEW, "sha256": digest}
    assert sha256((folder / FILE).read_bytes()) == digest
    assert found.source.items() >= record.items()

    server.asked.clear()
    server.names["main"] = OLD  # the repository moves on; what was fetched stays
    chex.assert_trees_all_equal(load(server).variables, expected(1))
    assert server.asked == []
    server.stop()
    chex.assert_trees_all_equal(load(server).variables, expected(1))
    assert server.asked == []
    with pytest.raises(InputError, match="cannot be fetched from the hub") as caught:
        load(server, revision="v1")
    assert "\n" not in str(caught.value)


def test_revision(server):
    load(server)
    for revision in ("v1", OLD):
        found = load(server, revision=revision)
        chex.assert_trees_all_equal(found.variables, expected(0))
        assert found.source["revision"] == OLD
    server.stop()
    for revision in ("v1", OLD):
        chex.assert_trees_all_equal(load(server, revision=revision).variables, expected(0))
    assert load(server).source["revision"] == NEW


def test_revision_that_is_a_path_stays_in_the_cache(server, tmp_path):
    server.names |= {"refs/pr/1": OLD, "../../../out": OLD}
    assert load(server, revision="refs/pr/1").source["revision"] == OLD
    assert (tmp_path / "deepjax" / "resnet18.tv_in1k" / "refs--pr--1" / FILE).exists()
    for revision in ("..", "../../../out", ""):
        with pytest.raises(InputError, match="give a commit, a tag or a branch"):
            load(server, revision=revision)
    assert [path.name for path in tmp_path.iterdir()] == ["deepjax"]


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "missing", "no record"])
def test_damaged_cache_is_one_clear_line(server, tmp_path, damage):
    load(server)
    folder = tmp_path / "deepjax" / "resnet18.tv_in1k" / "main"
    content = bytearray((folder / FILE).read_bytes())
    if damage == "flipped bit":
        content[-5] ^= 1
        (folder / FILE).write_bytes(content)
    elif damage == "truncated":
        (folder / FILE).write_bytes(content[:-100])
    elif damage == "missing":
        (folder / FILE).unlink()
    else:
        (folder / "record.json").write_text("{")
    with pytest.raises(InputError, match=f"{FILE} is damaged: .* delete {folder} and run the command again") as caught:
        load(server)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [lambda c: c[:-100] + bytes(100), lambda c: c[:-100]])
def test_damaged_download_is_not_kept(server, damage):
    server.damage = damage
    with pytest.raises(InputError, match=r"was damaged|cannot be fetched"):
        load(server)
    assert not hub.is_cached("resnet18")
    server.damage = lambda content: content
    chex.assert_trees_all_equal(load(server).variables, expected(1))


def test_unknown_names(server):
    with pytest.raises(InputError, match=r"revision 'v7' is not in the hub's timm/resnet18.tv_in1k"):
        load(server, revision="v7")
    with pytest.raises(InputError, match=r"timm/resnet34.tv_in1k model.safetensors cannot be fetched from the hub"):
        weights.load_pretrained("resnet34", endpoint=server.endpoint)
    with pytest.raises(InputError, match="did you mean 'resnet18.tv_in1k'"):
        weights.load_pretrained("resnet18.tv_in21k", endpoint=server.endpoint)
    with pytest.raises(InputError, match="there are no pretrained weights for 'cifar_resnet20'"):
        weights.load_pretrained("cifar_resnet20", endpoint=server.endpoint)


def test_server_that_is_no_hub(server):
    server.answer = lambda method, path: (200, {"ETag": '"x"'}, b"hello")
    with pytest.raises(InputError, match="is the endpoint a Hugging Face hub"):
        load(server)


def test_other_classes(server):
    with pytest.raises(InputError, match="reset_head=True"):
        load(server, num_classes=3)
    found = load(server, num_classes=3, reset_head=True)
    assert found.variables["params"]["head"]["kernel"].shape == (32, 3)
    assert found.source["options"] == {"width": 4}


def test_pretrained_from_the_hub_to_a_file(server, tmp_path):
    found = load(server)
    weights.save_pretrained(tmp_path / "a.safetensors", found)
    again = weights.load_pretrained(tmp_path / "a.safetensors")
    chex.assert_trees_all_equal(again.variables, found.variables)
    assert again.preprocessing == found.preprocessing
    assert again.network == found.network


def test_list(server, capsys):
    def rows():
        assert cli.main(["weights", "list", "--json"]) == 0
        return {row["weights"]: row for row in json.loads(capsys.readouterr().out)}

    assert not rows()["resnet18.tv_in1k"]["cached"]
    load(server)
    found = rows()
    assert found["resnet18.tv_in1k"] == {
        "weights": "resnet18.tv_in1k", "repository": REPOSITORY, "file": FILE, "cached": True,
    }  # fmt: skip
    assert sum(row["cached"] for row in found.values()) == 1
    assert cli.main(["weights", "list"]) == 0
    assert "resnet18.tv_in1k" in capsys.readouterr().out
    assert cli.main(["weights", "lists"]) == 2
    assert "deepjax weights list" in capsys.readouterr().err


# The table


def test_cards_are_of_networks_and_of_timms_repositories():
    assert set(zoo.CARDS) <= set(zoo.MODELS)
    assert len(hub.PRETRAINED) == 30
    for key, (network, file) in hub.PRETRAINED.items():
        assert file.repository == f"timm/{key}"
        assert key.startswith(f"{network}.")


def test_preprocessing_is_torchvisions():
    """Of every network that both have, and of every version of its weights that the table has."""
    models = helpers.import_torchvision().models
    ours = {(name, "IMAGENET1K_V1"): zoo.preprocessing(name) for name in models.list_models() if name in zoo.MODELS}
    assert len(ours) >= 36
    for key, (network, file) in hub.PRETRAINED.items():
        ours[network, "IMAGENET1K_V2" if key.endswith("tv2_in1k") else "IMAGENET1K_V1"] = file.preprocessing
        assert hub.preprocessing(key) == file.preprocessing
    for (name, version), steps in ours.items():
        published = models.get_model_weights(name).__members__
        if version not in published:
            assert (name, set(published)) == ("resnext101_64x4d", {"IMAGENET1K_V1"})
        theirs = published[version].transforms()
        assert ([steps.resize], [steps.crop]) == (theirs.resize_size, theirs.crop_size), name
        assert steps.interpolation == theirs.interpolation.value
        mean, std = np.array(theirs.mean), np.array(theirs.std)
        if name in ("googlenet", "inception_v3"):  # their pretrained forms convert these to others (transform_input)
            mean, std = np.full(3, 0.5), np.full(3, 0.5)
        np.testing.assert_allclose((steps.mean, steps.std), (mean, std))


def test_unknown_preprocessing():
    with pytest.raises(InputError, match="preprocessing for weights of cifar_resnet20 is unknown"):
        zoo.preprocessing("cifar_resnet20")
    with pytest.raises(InputError, match="did you mean 'resnet18'"):
        hub.preprocessing("rasnet18")


def test_inceptions_moments_are_what_torchvision_makes_inside():
    models = helpers.import_torchvision().models
    import torch

    pixels, usual = torch.rand(2, 3, 5, 5), zoo.preprocessing("resnet18")
    shape = (3, 1, 1)
    given = (pixels - torch.tensor(usual.mean).reshape(shape)) / torch.tensor(usual.std).reshape(shape)
    for name, kind in (("inception_v3", models.Inception3), ("googlenet", models.GoogLeNet)):
        ours = zoo.preprocessing(name)
        inside = kind._transform_input(type("", (), {"transform_input": True})(), given)
        expected = (pixels - torch.tensor(ours.mean).reshape(shape)) / torch.tensor(ours.std).reshape(shape)
        np.testing.assert_allclose(inside, expected, atol=1e-6)


def test_dense_layers_that_timm_has_as_convolutions():
    rng = np.random.default_rng(0)
    kernel, maps = rng.normal(size=(6, 5, 7, 7)), rng.normal(size=(5, 7, 7))
    theirs = {"features.0.weight": kernel, "pre_logits.fc1.weight": kernel, "pre_logits.fc1.bias": np.ones(6)}
    theirs |= {"pre_logits.fc2.weight": np.ones((6, 6, 1, 1)), "head.fc.weight": np.ones((2, 6))}
    found = hub._renamed(theirs, hub.PRETRAINED["vgg11.tv_in1k"][1].renamed)
    assert {name: value.shape for name, value in found.items()} == {
        "features.0.weight": (6, 5, 7, 7),
        "classifier.0.weight": (6, 245),
        "classifier.0.bias": (6,),
        "classifier.3.weight": (6, 6),
        "classifier.6.weight": (2, 6),
    }
    convolved = np.einsum("oihw,ihw->o", kernel, maps)
    np.testing.assert_allclose(found["classifier.0.weight"] @ maps.reshape(-1), convolved)


def test_layers_that_a_file_may_lack_are_initialized():
    network, theirs = zoo.create("resnet18", **THIN), state_dict(0)
    whole = weights.from_torch(network, theirs)
    lacking = {name: value for name, value in theirs.items() if not name.startswith("fc.")}
    found = weights.from_torch(network, lacking, fresh=("fc.",), key=jax.random.key(0))
    assert found["params"]["head"]["bias"].tolist() == [0] * 10
    assert not np.array_equal(found["params"].pop("head")["kernel"], whole["params"]["head"]["kernel"])
    chex.assert_trees_all_equal(weights.from_torch(network, theirs, fresh=("fc.",)), whole)
    whole["params"].pop("head")
    chex.assert_trees_all_equal(found, whole)
    with pytest.raises(InputError, match=r"weights lack fc.bias"):
        weights.from_torch(network, lacking | {"fc.weight": theirs["fc.weight"]}, fresh=("fc.",))
