"""What a word means where weights are expected."""

import pytest

from deepjax.errors import InputError
from deepjax.weights import kind_of


def test_a_networks_name_is_the_network_and_a_path_with_a_slash_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("resnet18", "runs/photos", "folder.pt"):
        (tmp_path / name).mkdir(parents=True)
    words = {"resnet18": "network", "resnet18.tv_in1k": "network", "./resnet18": "run", "runs/photos": "run"}
    words |= {"folder.pt": "run", "absent.safetensors": "file", "~/weights.pth": "file"}
    assert {word: kind_of(word) for word in words} == words


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("resnt18", "did you mean 'resnet18'"),
        ("runs/absent", "runs/absent: no folder of a run, and no file that ends in .safetensors"),
        ("notes.txt", "notes.txt: no folder of a run"),
        ("nowhere", "nowhere is no folder of a run, no file of weights and no network"),
    ],
)
def test_other_words_are_refused(word, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=message):
        kind_of(word)
