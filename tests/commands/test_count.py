import json

import pytest

import frugal


def test_table_and_its_json_twin(capsys):
    frugal.main(["count", "--network", "resnet18", "--input", "3,224,224"])
    table = capsys.readouterr().out
    frugal.main(["count", "--network", "resnet18", "--input", "3,224,224", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["params"] == 11_689_512
    assert report["flops"] == 1_814_073_344
    assert f"{report['flops']:,}" in table
    assert all(layer["name"] in table for layer in report["layers"])


def test_network_options(capsys):
    arguments = ["--input", "1,28,28", "--num_classes", "7", "--network_args", "{width: 0.5}", "--json"]
    frugal.main(["count", "--network", "conv4", *arguments])
    report = json.loads(capsys.readouterr().out)
    assert report["output_size"] == [7]
    assert report["layers"][0]["output_size"] == [32, 28, 28]


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["--network", "resnet81", "--input", "3,32,32"], "did you mean ", 1),
        (["--network", "conv8", "--input", "1,8,8"], "needs images of at least 16x16, got 8x8", 1),
        (["--network", "resnet18", "--input", "1,8000"], "ResNet does not accept an input of 1x8000", 1),
        (["--network", "resnet18"], "--network needs --input", 2),
        (["--network", "resnet18", "--input", "3x32"], "argument --input", 2),
        (["--network", "conv2", "--input", "3,32,32", "--jsn"], "unknown: --jsn", 2),
        ([], "one of the arguments --network -c/--config is required", 2),
    ],
)
def test_mistakes(capsys, arguments, message, status):
    with pytest.raises(SystemExit) as stop:
        frugal.main(["count", *arguments])
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == status
