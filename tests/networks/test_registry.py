import pytest

from networks import InputError, create


def test_networks_by_import_path_get_what_they_name(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n"
        "def mlp(in_chans, num_classes=3, hidden=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 4, hidden), nn.Linear(hidden, num_classes))\n"
    )
    (tmp_path / "broken_networks.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    net = create("own_networks.mlp", (5, 2, 2), 7, {"hidden": 6})
    assert (net[1].in_features, net[1].out_features, net[2].out_features) == (20, 6, 7)
    assert create("own_networks.mlp", (5, 2, 2))[2].out_features == 3
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        create("broken_networks.Net", (1, 8, 8))
    with pytest.raises(InputError, match=r"no network is called 'own_networks\.mpl'"):
        create("own_networks.mpl", (1, 8, 8))


def test_image_size_goes_to_networks_that_depend_on_it_and_to_no_other():
    assert create("conv2", (1, 8, 12), 10).linear[0].in_features == 64 * 4 * 6
    assert create("vit_tiny_patch16_224", (3, 64, 64), 10).pos_embed.shape[1] == 1 + 4 * 4
    assert create("resnet18", (3, 64, 64), 10).num_classes == 10
    with pytest.raises(InputError, match="conv2 cannot be built"):
        create("conv2", (1, 8, 8), 10, {"img_size": 8, "depth": 3})
    with pytest.raises(InputError, match=r"resnet18.no_such_tag cannot be built"):
        create("resnet18.no_such_tag", (3, 64, 64))
