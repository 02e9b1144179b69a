"""What is measured of each stitch, kept in the table, and chosen by."""

import time

import pytest
import timm
import torch
from tiny import deit_specs, deits

import timm_stitch
from timm_stitch import cli
from timm_stitch.plan.results import read_rows
from timm_stitch.plan.timings import call_times

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SOME = [0, 2, 9, 24]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("snnet", anchors=deit_specs()).train()


@pytest.mark.parametrize("quick", [False, True])
def test_each_stitch_is_measured_and_kept_in_the_table(model, quick):
    rows = timm_stitch.profile(model, batch_size=4, stitch_ids=SOME, repeats=3, quick=quick)
    assert model.training
    assert [row["stitch_id"] for row in rows] == SOME
    table = {row["stitch_id"]: row for row in model.stitch_table()}
    for row in rows:
        assert row["latency_ms"] > 0
        assert row["images_per_s"] == pytest.approx(4000 / row["latency_ms"])
        assert row["batch_size"] == 4
        assert row["latency_ms_batch_4"] == row["latency_ms"]
        assert "threads" in row["profiled_on"]
        weights = 4 * row["params"] / 1e6  # float32
        assert weights < row["memory_mb"] < weights + 4
        assert table[row["stitch_id"]]["latency_ms"] == row["latency_ms"]
    assert ("latency_error" in rows[0]) == quick
    assert "latency_ms" not in table[5]


@pytest.mark.parametrize("quick", [False, True])
def test_several_batch_sizes_are_one_row(model, quick, tmp_path):
    model.results.clear()
    slow = [a.patch_embed.register_forward_pre_hook(lambda _, x: time.sleep(0.005 * len(x[0]))) for a in model.anchors]
    rows = timm_stitch.profile(model, batch_sizes=[8, 1, 2], stitch_ids=SOME, repeats=6, quick=quick)
    for handle in slow:
        handle.remove()
    assert [row["stitch_id"] for row in rows] == SOME
    for row in rows:
        assert row["batch_size"] == 1
        assert row["latency_ms"] == row["latency_ms_batch_1"] > 0
        assert row["images_per_s"] == pytest.approx(1000 / row["latency_ms"])
        assert list(call_times(row)) == [1, 2, 8]
        assert row["latency_ms_batch_8"] > row["latency_ms_batch_1"]  # eight sleeps and one, whatever the machine does
        assert ("latency_spread_ms" in row) != quick
    timm_stitch.profile(model, batch_size=4, stitch_ids=SOME, repeats=1)
    assert [list(call_times(model.stitch_table()[i])) for i in SOME] == [[1, 2, 4, 8]] * len(SOME)
    timm_stitch.save_pretrained(model, tmp_path / "net")
    again = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True)
    assert list(call_times(again.stitch_table()[2])) == [1, 2, 4, 8]
    timm_stitch.profile(model, stitch_ids=[2], repeats=1, precision="bf16")
    assert [list(call_times(model.stitch_table()[i])) for i in SOME] == [[], [1], [], []]


def test_sizes_and_stitches_take_turns(model):
    seen = []
    handle = model.register_stitch_hook(lambda _, stitch_id, images: seen.append((stitch_id, images)))
    timm_stitch.profile(model, batch_sizes=[1, 2], stitch_ids=[0, 2, 9], repeats=4)
    handle.remove()
    rounds = [seen[i : i + 6] for i in range(0, 30, 6)]
    assert all(len(set(calls)) == 6 for calls in rounds)
    assert len({tuple(calls) for calls in rounds[1:]}) == 4  # another order each, after one to warm up
    assert seen[30:] == [(0, 1), (2, 1), (9, 1)]  # memory is that of the smallest


def test_memory_grows_with_the_batch_by_activations_alone(model):
    one, many = (timm_stitch.profile(model, b, stitch_ids=[2], repeats=1)[0]["memory_mb"] for b in (1, 33))
    width = 32 * 17 * 96 * 4 / 1e6  # images x tokens x channels x bytes
    assert 8 * width < many - one < 16 * width  # a block's hidden layer is 4 wide, before and after its activation


def test_a_latency_budget_chooses_the_most_accurate_within(model):
    model.eval()
    results = timm_stitch.evaluate(model, [(IMAGES, torch.arange(8))])
    with pytest.raises(ValueError, match=r"has no latency_ms .*timm_stitch\.profile"):
        timm_stitch.select(timm_stitch.stitch(deits()), [{"stitch_id": 0, "top1": 9.0}], latency_ms=1)
    for row in results:
        row["latency_ms"], row["top1"] = 1.0 + row["stitch_id"], 50.0 + row["stitch_id"] % 7
    assert timm_stitch.select(model, results, latency_ms=20) == 6
    model.results.add(results)
    assert model.set_budget(latency_ms=20) is model
    assert model.stitch_id == 6
    assert model.set_budget(latency_ms=20, macs=model.stitch_table()[6]["macs"] - 1).stitch_id != 6
    for row in results:
        row["latency_ms_batch_8"] = 100.0 - row["stitch_id"]
    assert timm_stitch.select(model, results, latency_ms=90, batch_size=8) == 34
    model.results.add(results)
    assert model.set_budget(latency_ms=90, batch_size=8).stitch_id == timm_stitch.select(
        model, latency_ms=90, batch_size=8
    )
    assert model.stitch_id == 34
    with pytest.raises(ValueError, match="not measured at batch_size=2, only at 1, 8"):
        model.set_budget(latency_ms=90, batch_size=2)
    with pytest.raises(ValueError, match="no stitch fits"):
        model.set_budget(latency_ms=0.5)
    with pytest.raises(ValueError, match="memory_mb"):
        model.set_budget(memory_mb=100)


def test_figures_of_other_weights_are_not_taken_for_these(model):
    model.results.add([{"stitch_id": 2, "top1": 99.0, "weights": "0123456789abcdef"}])
    timm_stitch.profile(model, stitch_ids=[2], repeats=1)
    assert "top1" not in model.stitch_table()[2]


def test_bad_arguments(model):
    with pytest.raises(ValueError, match=r"precision must be one of .*, got 'int4'"):
        timm_stitch.profile(model, precision="int4")
    with pytest.raises(ValueError, match=r"batch_size must be .*, got 0"):
        timm_stitch.profile(model, batch_size=0)
    with pytest.raises(ValueError, match=r"batch_size must be .*, got \[1, 2\]; .* as batch_sizes=\[1, 8\]"):
        timm_stitch.profile(model, [1, 2])
    with pytest.raises(ValueError, match=r"batch_size=1 and batch_sizes=\[1, 2\] are both given: give one of them"):
        timm_stitch.profile(model, 1, batch_sizes=[1, 2])
    for odd in ([], [0, 1], [2, 2], [1, 5000], 8, ["8"]):
        with pytest.raises(ValueError, match="batch_sizes must be different whole numbers from 1 to 4,096, got"):
            timm_stitch.profile(model, batch_sizes=odd)
    with pytest.raises(ValueError, match="repeats must be 1 or more, got 0"):
        timm_stitch.profile(model, repeats=0)


def test_the_verb_keeps_figures_for_select(model, tmp_path, capsys):
    model.results.clear()
    model.eval()
    folder = timm_stitch.save_pretrained(
        model, tmp_path / "net", timm_stitch.evaluate(model, [(IMAGES, torch.arange(8))])
    )
    out = tmp_path / "latency.jsonl"
    assert cli.main(["profile", str(folder), "--quick", "--repeats", "1", "--save", "--output", str(out)]) == 0
    assert "off by" in capsys.readouterr().out
    slowest = max(row["latency_ms"] for row in read_rows(out))
    assert cli.main(["select", str(folder), "--latency-ms", str(slowest * 2), "--json"]) == 0
    again = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert again.set_budget(latency_ms=slowest * 2).stitch_id == timm_stitch.select(again, macs=1e12)
    command = ["profile", str(folder), "--quick", "--repeats", "1", "--save", "--batch-sizes"]
    assert cli.main([*command, "1", "4"]) == 0
    said = capsys.readouterr().out
    heads = next(line for line in said.splitlines() if line.startswith("stitch_id")).split()
    assert heads[4:] == ["ms_1", "ms_4", "images_per_s", "memory_mb"]
    assert "batch 1, 4, fp32, on " in said
    assert "all but ms_N are of batch 1" in said
    assert cli.main(["select", str(folder), "--latency-ms", "1e6", "--batch-size", "4"]) == 0
    assert "ms_4" in capsys.readouterr().out
    assert cli.main(["select", str(folder), "--latency-ms", "1e6", "--batch-size", "3"]) == 1
    assert "was not measured at batch_size=3, only at 1, 4" in capsys.readouterr().err
    assert cli.main([*command, "1", "--batch-size", "1"]) == 1
    assert "are both given" in capsys.readouterr().err
    assert cli.main(["profile", "snnet_deit", "--save"]) == 1
    assert "'snnet_deit' is not one: use --output" in capsys.readouterr().err
