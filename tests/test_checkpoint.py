"""Networks to disk and back, and every way a checkpoint can be wrong."""

import configparser
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file, save_file

from splitshuffle_gan import __version__
from splitshuffle_gan.checkpoint import (
    find_checkpoint,
    load_strictly,
    shipped,
    shipped_checkpoints,
    shipped_generators,
)
from splitshuffle_gan.config import DiscriminatorConfig, GeneratorConfig
from splitshuffle_gan.errors import UserError
from splitshuffle_gan.models.discriminator import Discriminator
from splitshuffle_gan.models.generator import Generator

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = {"rank": 3, "shape": (8, 8, 8), "channels": (4, 4)}
GEOMETRY = {
    "spacing": [3.0, 1.0, 1.0],
    "plane": "axial",
    "affine": [[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]],
    "intensity": {"kind": "window", "low": -250.0, "high": 650.0},
}
DOWNLOAD = "splitshuffle_gan.checkpoint.hf_hub_download"


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def generator() -> Generator:
    g = Generator(GeneratorConfig(**TINY, z_dim=4, w_dim=4, mapping_layers=1, conv="plain"), GEOMETRY)
    with torch.no_grad():
        for value in g.state_dict().values():
            value.normal_()
    return g


@pytest.fixture
def saved(generator, tmp_path):
    generator.save_pretrained(tmp_path / "g")
    return tmp_path / "g"


def edit_header(folder, **changes):
    """Replace header fields; None removes one."""
    header = json.loads((folder / "config.json").read_text())
    header.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in header.items() if v is not None}))


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


# Round trip -----------------------------------------------------------------------------------------------------------


def assert_same(restored, network):
    assert type(restored) is type(network)
    assert restored.config == network.config and restored.geometry == network.geometry
    assert restored.state_dict().keys() == network.state_dict().keys()
    for key, value in network.state_dict().items():
        assert torch.equal(restored.state_dict()[key], value), key


def test_a_generator_comes_back_exactly(generator, saved):
    restored = Generator.from_pretrained(saved)
    assert_same(restored, generator)
    assert not restored.training
    z = torch.randn(2, 4)
    assert torch.equal(restored(z, noise_mode="const"), generator(z, noise_mode="const"))
    assert_same(Generator.from_pretrained(str(saved)), generator)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_discriminator_comes_back_exactly(tmp_path, rank):
    d = Discriminator(DiscriminatorConfig(**{**TINY, "rank": rank}, group_size=2))
    d.save_pretrained(tmp_path / "d")
    assert_same(Discriminator.from_pretrained(tmp_path / "d"), d)


def test_the_files_are_the_documented_ones(generator, saved):
    assert {"config.json", "model.safetensors"} <= {p.name for p in saved.iterdir()}
    assert {p.suffix for p in saved.iterdir()} <= {".json", ".safetensors", ".md"}  # no pickle, no leftovers
    header = json.loads((saved / "config.json").read_text())
    assert header == {
        "format": "splitshuffle_gan",
        "version": 1,
        "class": "Generator",
        "created_with": __version__,
        "config": json.loads(json.dumps(generator.config.to_dict())),
        "geometry": GEOMETRY,
    }
    assert load_file(saved / "model.safetensors").keys() == generator.state_dict().keys()


def test_saving_again_replaces_what_was_there(generator, saved):
    with torch.no_grad():
        generator.constant += 1
    generator.geometry = None
    generator.save_pretrained(saved)
    assert_same(Generator.from_pretrained(saved), generator)


def test_channels_last_weights_are_saved_alike(generator, saved):
    for parameter in generator.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
    generator.save_pretrained(saved)
    assert_same(Generator.from_pretrained(saved), generator)


# Wrong headers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("version", "1"),
        ("version", None),
        ("format", "stylegan"),
        ("format", None),
        ("class", "Discriminator"),
        ("config", None),
    ],
)
def test_a_header_of_another_kind_is_named(saved, field, value):
    edit_header(saved, **{field: value})
    with pytest.raises(UserError, match=rf"{saved / 'config.json'}: field '?{field}"):
        Generator.from_pretrained(saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [("spacing", [1, 2]), ("plane", "oblique"), ("affine", [[1.0] * 4] * 4), ("intensity", {}), ("intensity", None)],
)
def test_a_damaged_geometry_is_named(saved, field, value):
    path = saved / "config.json"
    header = json.loads(path.read_text())
    header["geometry"][field] = value
    path.write_text(json.dumps(header))
    with pytest.raises(UserError, match=f"config.json: geometry has {field}"):
        Generator.from_pretrained(saved)


def test_a_missing_geometry_is_named(saved):
    path = saved / "config.json"
    header = json.loads(path.read_text())
    del header["geometry"]
    path.write_text(json.dumps(header))
    with pytest.raises(UserError, match="geometry is missing"):
        Generator.from_pretrained(saved)


def test_a_discriminator_is_not_a_generator(saved):
    with pytest.raises(UserError, match="'class' is 'Generator', wanted 'Discriminator'"):
        Discriminator.from_pretrained(saved)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', b"\xff\xfe\x00"], ids=repr)
def test_a_header_that_is_no_json_object_is_named(saved, content):
    content = content if isinstance(content, bytes) else content.encode()
    (saved / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=str(saved / "config.json")):
        Generator.from_pretrained(saved)


def test_unknown_and_missing_config_fields_are_named(generator, saved):
    config = generator.config.to_dict()
    edit_header(saved, config={**config, "dropout": 0.1})
    with pytest.raises(UserError, match="unknown field dropout"):
        Generator.from_pretrained(saved)
    del config["rank"]
    edit_header(saved, config=config)
    with pytest.raises(UserError, match="field rank is missing"):
        Generator.from_pretrained(saved)


# Wrong weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("constant"), "missing key constant"),
        (lambda state: state.update(stray=torch.zeros(1)), "extra key stray"),
        (lambda state: state.update(constant=torch.zeros(4, 4, 4, 5)), r"key constant has shape \(4, 4, 4, 5\)"),
        (lambda state: state.update(w_avg=torch.zeros(1)), r"key w_avg has shape \(1,\), wanted \(4,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved, change, message):
    edit_weights(saved, change)
    with pytest.raises(UserError, match=message) as caught:
        Generator.from_pretrained(saved)
    assert str(saved / "model.safetensors") in str(caught.value)


def test_many_faults_are_summarised(generator):
    with pytest.raises(UserError, match=f"and {len(generator.state_dict()) - 5} more"):
        load_strictly(generator, {}, "nothing")


def test_a_refused_state_changes_nothing(generator):
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    state = {key: torch.zeros_like(value) for key, value in before.items()}
    del state["w_avg"]
    with pytest.raises(UserError):
        load_strictly(generator, state, "half")
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())


@pytest.mark.parametrize("keep", [0, 4, 200, -8])
def test_truncated_weights_are_named(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
        Generator.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(UserError, match=f"{saved}: no generator here.*{name}"):
        Generator.from_pretrained(saved)


# The hub --------------------------------------------------------------------------------------------------------------


def test_a_hub_repository_is_downloaded_with_the_given_options(generator, saved, tmp_path, monkeypatch):
    asked = []

    def download(repo_id, filename, **options):
        asked.append((repo_id, filename, options))
        cache = options["cache_dir"]
        cache.mkdir(exist_ok=True)
        return shutil.copy(saved / filename, cache / filename)

    monkeypatch.setattr(DOWNLOAD, download)
    options = {
        "revision": "v1",
        "cache_dir": tmp_path / "cache",
        "force_download": True,
        "local_files_only": False,
        "token": "t",
    }
    assert_same(Generator.from_pretrained("someone/brains", **options), generator)
    assert [(repo, name) for repo, name, _ in asked] == [
        ("someone/brains", "config.json"),
        ("someone/brains", "model.safetensors"),
    ]
    assert all(given == options for _, _, given in asked)


def http_error():
    """An HTTP error as the client raises it, without a response from anywhere."""
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, "401 Client Error\nmore")
    return error


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("no connection"),
        OfflineModeIsEnabled("offline"),
        ConnectionError("refused"),
        OSError("disk full"),
        http_error(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_unreachable_repository_is_named(monkeypatch, error):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(DOWNLOAD, download)
    with pytest.raises(UserError, match=r"someone/brains: neither a folder nor .*config\.json"):
        Generator.from_pretrained("someone/brains")


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such/folder", "a..b/c", "spaces are not allowed", ""])
def test_a_path_that_can_be_no_repository_is_named_without_a_network(name):
    """The hub's own validation runs here: these never reach a connection."""
    with pytest.raises(UserError, match="neither a folder nor|no such folder|no generator here"):
        Generator.from_pretrained(name)


def test_an_empty_cache_without_network_is_an_error(tmp_path):
    with pytest.raises(UserError, match="someone/brains"):
        Generator.from_pretrained("someone/brains", cache_dir=tmp_path, local_files_only=True)


def test_push_to_hub_uploads_a_checkpoint_that_loads(generator, tmp_path, monkeypatch):
    uploads = tmp_path / "uploads"

    class Repository:
        repo_id = "someone/brains"

    def upload_folder(self, *, repo_id, folder_path, **_):
        shutil.copytree(folder_path, uploads / repo_id)
        return "commit"

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, repo_id, **_: Repository())
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    assert generator.push_to_hub("someone/brains") == "commit"
    folder = uploads / "someone" / "brains"
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert_same(Generator.from_pretrained(folder), generator)
    card = (folder / "README.md").read_text()
    assert "library_name: splitshuffle_gan" in card and "- medical-imaging" in card


# find_checkpoint ------------------------------------------------------------------------------------------------------


def touch_checkpoint(folder):
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).touch()
    return folder


def test_a_checkpoint_folder_is_itself(tmp_path):
    assert find_checkpoint(touch_checkpoint(tmp_path / "g"), "generator") == str(tmp_path / "g")


def test_a_pair_holds_both(tmp_path):
    for network in ("generator", "discriminator"):
        folder = touch_checkpoint(tmp_path / network)
        assert find_checkpoint(tmp_path, network) == str(folder)


def test_the_latest_snapshot_of_a_run_counts(tmp_path):
    for kimg in ("kimg000009", "kimg000100", "kimg000020"):
        touch_checkpoint(tmp_path / "snapshots" / kimg / "generator")
    (tmp_path / "config.json").touch()  # a run's own files do not make it a checkpoint
    latest = tmp_path / "snapshots" / "kimg000100" / "generator"
    assert find_checkpoint(tmp_path, "generator") == str(latest)
    assert find_checkpoint(str(tmp_path), "generator") == str(latest)


def test_the_latest_snapshot_that_holds_the_network_counts(tmp_path):
    old = touch_checkpoint(tmp_path / "snapshots" / "kimg000001" / "discriminator")
    touch_checkpoint(tmp_path / "snapshots" / "kimg000002" / "generator")
    assert find_checkpoint(tmp_path, "discriminator") == str(old)


def test_what_is_no_folder_may_be_a_hub_id():
    assert find_checkpoint("someone/brains", "generator") == "someone/brains"


def test_a_folder_without_the_network_is_named(tmp_path):
    touch_checkpoint(tmp_path / "generator")
    with pytest.raises(UserError, match=f"{tmp_path}: no discriminator here"):
        find_checkpoint(tmp_path, "discriminator")


# Checkpoints that ship ------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty `checkpoints/` beside the package, and no other."""
    monkeypatch.setattr("splitshuffle_gan.checkpoint.__file__", str(tmp_path / "repo" / "splitshuffle_gan" / "c.py"))
    monkeypatch.setattr("sysconfig.get_path", lambda name, scheme: str(tmp_path / "prefix"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "repo" / "checkpoints"


def test_a_generator_that_ships_is_found_by_name(generator, shelf):
    generator.save_pretrained(shelf / "tiny-mr")
    assert find_checkpoint("tiny-mr", "generator") == str(shelf / "tiny-mr")
    assert_same(Generator.from_pretrained("tiny-mr"), generator)


def test_a_wheel_puts_them_into_its_data_folder(generator, shelf, tmp_path):
    generator.save_pretrained(tmp_path / "prefix" / "share" / "splitshuffle_gan" / "checkpoints" / "tiny-mr")
    assert_same(Generator.from_pretrained("tiny-mr"), generator)
    assert [folder.name for folder in shipped_generators()] == ["tiny-mr"]


def test_a_local_folder_of_that_name_wins(generator, shelf):
    generator.save_pretrained(shelf / "tiny-mr")
    with torch.no_grad():
        generator.constant += 1
    generator.save_pretrained("tiny-mr")
    assert_same(Generator.from_pretrained("tiny-mr"), generator)


def test_an_unknown_name_lists_the_generators_that_ship(generator, shelf):
    with pytest.raises(UserError, match=r"tinny: no such folder; .*or a hub id OWNER/NAME\.$"):
        Generator.from_pretrained("tinny")
    for name in ("tiny-mr", "tiny-ct"):
        generator.save_pretrained(shelf / name)
    Discriminator(DiscriminatorConfig(**TINY)).save_pretrained(shelf / "judge")
    touch_checkpoint(shelf / "broken")
    with pytest.raises(UserError, match=r"tinny: no such folder; .*or what ships: tiny-ct, tiny-mr\.$"):
        Generator.from_pretrained("tinny")
    assert [folder.name for folder in shipped_checkpoints()] == ["broken", "judge", "tiny-ct", "tiny-mr"]


@pytest.mark.parametrize("name", ["../checkpoints/tiny-mr", "checkpoints/tiny-mr", "/tiny-mr", "tiny-mr/", ".", ".."])
def test_a_path_is_no_name_of_what_ships(generator, shelf, name):
    generator.save_pretrained(shelf / "tiny-mr")
    assert shipped(name) is None


def test_a_path_object_must_be_a_folder(generator, shelf):
    generator.save_pretrained(shelf / "tiny-mr")
    with pytest.raises(UserError, match="tiny-mr: no such folder"):
        find_checkpoint(Path("tiny-mr"), "generator")


def test_setup_cfg_installs_every_file_of_every_checkpoint():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    listed = {target: set(patterns.split()) for target, patterns in setup["options.data_files"].items()}
    folders = [path for path in (REPOSITORY / "checkpoints").iterdir() if path.is_dir()]
    assert set(listed) == {f"share/splitshuffle_gan/checkpoints/{folder.name}" for folder in folders}
    for folder in folders:
        patterns = listed[f"share/splitshuffle_gan/checkpoints/{folder.name}"]
        matched = {path for pattern in patterns for path in REPOSITORY.glob(pattern)}
        assert matched == set(folder.iterdir())


def test_the_readme_of_checkpoints_links_every_card():
    text = (REPOSITORY / "checkpoints" / "README.md").read_text()
    cards = sorted((REPOSITORY / "checkpoints").glob("*/README.md"))
    assert cards and all(f"[{card.parent.name}]({card.parent.name}/README.md)" in text for card in cards)


def test_what_ships_is_small():
    files = [path for path in (REPOSITORY / "checkpoints").rglob("*") if path.is_file()]
    assert files and max(path.stat().st_size for path in files) <= 16 * 2**20
