"""Recipes: the shipped ones are understood to the last key, versions tell ensembles apart, pins hold."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from classifier import app, cli, ensembles
from classifier.errors import SetupError
from tests.models import recipe, timm_model, timm_table


@pytest.mark.parametrize("name", ensembles.shipped())
def test_a_shipped_recipe_is_understood_to_the_last_key(name: str) -> None:
    understood = ensembles.read(name)
    signals = [signal for planned in understood.heads for signal in planned.signals]
    assert {"sexual", "minor"} <= set(signals)
    assert understood.name == name
    assert understood.about
    assert all(understood.weak)


def test_three_recipes_are_shipped() -> None:
    assert ensembles.shipped() == ["accurate", "standard", "starter"]


def test_an_unknown_key_in_any_shipped_recipe_would_be_found(tmp_path: Path) -> None:
    for name in ensembles.shipped():
        text = ensembles.read(name).text
        for number in range(text.count("[[heads]]")):
            parts = text.split("[[heads]]\n")
            parts[number + 1] = "misspelt = 1\n" + parts[number + 1]
            path = tmp_path / f"{name}.toml"
            path.write_text("[[heads]]\n".join(parts))
            with pytest.raises(SetupError, match="unknown key misspelt"):
                ensembles.read(str(path))


def test_nothing_of_torch_is_imported_until_a_recipe_names_it() -> None:
    code = (
        "import sys; from classifier import commands, ensembles; ensembles.read('starter')\n"
        "print([name for name in ('torch', 'timm', 'open_clip', 'huggingface_hub') if name in sys.modules])"
    )
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert started.stdout.strip() == "[]"


def test_without_open_clip_the_recipe_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "classifier.heads.concepts", raising=False)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(SetupError, match=r"open_clip, which is not installed; pip install"):
        ensembles.read("standard")


def test_the_version_changes_with_a_weight_with_the_recipe_and_with_nothing_else(tmp_path: Path) -> None:
    def version(*, seed: int = 0, **options: object) -> str:
        folder = timm_model(tmp_path / "model", seed=seed)
        return ensembles.load(recipe(tmp_path, timm_table(folder, **options))).version

    first = version()
    assert version() == first
    assert version(precision="fp32") != first
    others = [version(seed=1), version(signal="other"), version(classes=[0]), version(precision="bf16")]
    assert len({first, *others}) == 5


def test_the_version_changes_with_what_the_model_s_own_configuration_makes_of_its_weights(
    tmp_path: Path,
) -> None:
    def version(**config: object) -> str:
        folder = timm_model(tmp_path / "model", **config)
        return ensembles.load(recipe(tmp_path, timm_table(folder))).version

    first = version()
    assert version() == first
    relabelled = timm_model(tmp_path / "model")
    described = json.loads((relabelled / "config.json").read_text())
    described["label_names"].reverse()
    (relabelled / "config.json").write_text(json.dumps(described))
    swapped = ensembles.load(recipe(tmp_path, timm_table(relabelled))).version
    described["model_args"] = {**(described.get("model_args") or {}), "act_layer": "relu"}
    described["label_names"].reverse()
    (relabelled / "config.json").write_text(json.dumps(described))
    activated = ensembles.load(recipe(tmp_path, timm_table(relabelled))).version
    others = [version(mean=[0.1, 0.1, 0.1]), version(crop_pct=1.0), version(interpolation="bilinear")]
    assert len({first, swapped, activated, *others}) == 6


def test_the_version_is_that_of_the_weights_in_whatever_precision_they_compute(tmp_path: Path) -> None:
    folder = timm_model(tmp_path / "model")
    fingerprints = [
        list(ensembles.load(recipe(tmp_path, timm_table(folder, precision=name))).heads[0].fingerprints())
        for name in ("fp32", "bf16")
    ]
    assert fingerprints[0] == fingerprints[1]


def test_a_pinned_file_of_weights_is_held_to_its_hash_at_every_load(tmp_path: Path) -> None:
    folder = timm_model(tmp_path / "model")
    weights = folder / "model.safetensors"
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    path = recipe(tmp_path, timm_table(folder, sha256=sha256))
    assert ensembles.load(path).signals == ["sexual"]
    timm_model(folder, seed=1)
    with pytest.raises(SetupError, match=rf"model\.safetensors: its SHA-256 is [0-9a-f]{{64}}.*{sha256}"):
        ensembles.load(path)
    weights.unlink()
    with pytest.raises(SetupError, match=r"no model\.safetensors or .* to hold to its sha256"):
        ensembles.load(path)


def test_a_pin_that_is_no_hash_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="64 hexadecimal digits"):
        ensembles.read(recipe(tmp_path, timm_table(tmp_path, sha256="abc")))


def test_info_explains_an_ensemble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = timm_model(tmp_path / "model")
    path = recipe(tmp_path, timm_table(folder, weak="pictures of the night"))
    assert cli.main(["info", path]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for expected in (
        f"version {ensembles.load(path).version}",
        "sexual P(unsafe)",
        "takes 160×160 pixels, 90% of the middle of the picture",
        "model.safetensors, 1.2 MB, is here",
        "computes on cpu in float32",
        "weak at pictures of the night",
    ):
        assert expected in said, said


def test_info_without_a_name_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == ensembles.shipped()


def test_every_device_gets_a_replica_of_its_own(tmp_path: Path) -> None:
    path = recipe(tmp_path, timm_table(timm_model(tmp_path / "model")).replace('device = "cpu"', ""))
    replicas = app.load(path, ["cpu", "cpu"])
    assert len(replicas) == 2 and replicas[0] is not replicas[1]
    assert {replica.version for replica in replicas} == {replicas[0].version}
    assert replicas[0].preparations == replicas[1].preparations
    with pytest.raises(SetupError, match="cuda:63"):
        app.load(path, ["cpu", "cuda:63"])
