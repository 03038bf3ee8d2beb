"""What a simulated step says of processes, and what follows from it: times, remedies, words."""

import dataclasses
import gc
import json
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from simulated_runs import distillation, pretraining
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from dinov2_zoo.config import DistillConfig, PretrainConfig
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.recipes import plan
from dinov2_zoo.simulation import chips, remedies
from dinov2_zoo.simulation.chips import CHIPS, GIB, MEMORY, PRODUCTS, Chip
from dinov2_zoo.simulation.ledger import Ledger
from dinov2_zoo.simulation.networks import shape_of
from dinov2_zoo.simulation.remedies import CHECKPOINT, RESHARD, try_remedies
from dinov2_zoo.simulation.report import figures, seconds
from dinov2_zoo.simulation.runtime import Processes
from dinov2_zoo.simulation.step import simulate
from dinov2_zoo.simulation.timing import predict, seconds_of, seconds_together
from dinov2_zoo.simulation.watch import Collective, Watch, Work

CARD = Chip(10.0, {"bf16": 100.0, "tf32": 50.0, "fp32": 10.0, "fp64": 1.0}, 1000, 100, 10, "made up")


@pytest.fixture(scope="module")
def alone():
    return simulate(pretraining(), Processes(1))


@pytest.fixture(scope="module")
def four():
    return simulate(pretraining(), Processes(4))


def sizes(step, name):
    return [c for c in step.collectives if c.name == name]


def test_one_process_speaks_to_nobody(alone):
    assert not alone.collectives and alone.images == 8 and not dist.is_initialized()
    assert sum(alone.at_peak.values()) == alone.peak


def test_what_stays_is_what_torch_holds(alone):
    held = alone.held
    assert held["weights"] > held["average"] > 0  # and the centres
    assert held["optimizer"] == pytest.approx(2 * held["average"], rel=0.01)


def test_shards_are_gathered_and_reduced_by_block(four):
    step = four
    blocks = 2 + 1  # and what is outside of them
    assert len(sizes(step, "reduce-scatter")) == blocks and not dist.is_initialized()
    assert len(sizes(step, "all-gather")) == 2 * blocks + 2  # student, average; KoLeo of two views
    assert {len(c.ranks) for c in step.collectives} == {4} and step.images == 2
    resharded = simulate(pretraining(), Processes(4, reshard=True))
    kind = "gathered and cast weights"
    assert step.at_peak[kind] > 2 * resharded.at_peak.get(kind, 0)
    assert len(sizes(resharded, "all-gather")) > len(sizes(step, "all-gather")) and resharded.peak < step.peak


def test_hybrid_sharding_speaks_within_copies_and_across_them():
    step = simulate(pretraining(), Processes(4, copies=2))
    assert {c.ranks for c in sizes(step, "reduce-scatter")} == {(0, 1)}
    across = [c for c in sizes(step, "all-reduce") if c.ranks == (0, 2)]
    assert len(across) == 3 and all(c.sharding for c in across)
    with pytest.raises(ConfigError, match="3 copies do not divide 4 GPUs"):
        Processes(4, copies=3)


def test_accumulation_and_checkpointing_take_less(alone):
    halves = simulate(pretraining(accumulate=2), Processes(1))
    assert halves.images == 4 and halves.peak < alone.peak
    assert 1.2 < halves.flops / alone.flops < 1.4  # one more forward pass of the student
    again = simulate(pretraining(activation_checkpointing=True), Processes(1))
    assert again.peak < 0.8 * alone.peak and again.flops > 1.15 * alone.flops


def test_a_distillation_has_a_teacher():
    step = simulate(distillation("prototypes", init="random"), Processes(2))
    assert step.held["teacher"] > 0 and "teacher" in {work.phase for work in step.works}
    with pytest.raises(ConfigError, match="one teacher"):
        simulate(dataclasses.replace(distillation(), teacher="a=small,b=large"), Processes(1))
    with pytest.raises(ConfigError, match=r"nowhere/such is not on this machine.* such as vitb14"):
        shape_of("nowhere/such")
    assert shape_of("facebook/dinov2-giant").embed_dim == 1536


def test_the_batch_must_divide():
    with pytest.raises(ConfigError, match="does not divide among 3 processes"):
        simulate(pretraining(), Processes(3))


# -------------------------------------------------------------------- memory and numbers


def test_the_ledger_follows_lives_resizes_and_names():
    ledger = Ledger()
    mode = FakeTensorMode()
    with mode, Watch(ledger), ledger.following_resizes():
        kept = torch.zeros(100)
        ledger.call([kept], "weights")
        view = kept[:10]
        gone = torch.zeros(1000)
        assert ledger.now == 4400 and ledger.kind_of(view) == "weights"
        del gone
        assert ledger.now == 400 and ledger.peak == 4400
        assert ledger.at_peak() == {"temporary": 4000, "weights": 400}
        view.untyped_storage().resize_(0)
        assert ledger.now == 0
        view.untyped_storage().resize_(4000)
        assert ledger.held() == {"gathered and cast weights": 4000}
        del kept, view
    gc.collect()
    assert ledger.now == 0 and torch.UntypedStorage.resize_.__name__ == "resize_"


def test_told_numbers_are_computed_with_and_others_are_zero():
    watch = Watch(Ledger())
    with FakeTensorMode(), watch:
        zeros = watch.tell_zeros(torch.randn(3))
        assert torch.stack([zeros[0] > 0, torch.isfinite(zeros + 1).all()]).tolist() == [False, True]
        assert float(torch.randn(()) + 1) == 0
        with pytest.raises(DynamicOutputShapeException):  # a step has none: the loader says which patches are hidden
            torch.zeros(8, 5, dtype=torch.bool).nonzero()
        zeros.add_(torch.randn(3))
        assert zeros.sum().item() == 0 and zeros not in watch._told


def test_products_are_counted_with_their_precision():
    watch = Watch(Ledger())
    with FakeTensorMode(), watch:
        a = torch.empty(4, 8)
        with torch.autocast("cpu", torch.bfloat16):
            a @ torch.empty(8, 2)
        a.copy_(torch.empty(4, 8))
        a.view(-1)
    products = [work for work in watch.works if work.flops]
    assert [(work.flops, work.precision) for work in products] == [(2 * 4 * 8 * 2, "bf16")]
    assert products[0].traffic == 2 * (4 * 8 + 8 * 2 + 4 * 2)
    assert watch.works[-1].traffic == 2 * 4 * 4 * 8  # a copy reads one and writes the other


# -------------------------------------------------------------------- times


def test_an_operation_takes_what_bounds_it():
    products, memory = seconds_of(Work("loss", 10**12, 10**9, "bf16"), CARD)
    assert products == pytest.approx(0.01 / PRODUCTS) and memory == pytest.approx(1e-3 / MEMORY)


def test_collectives_go_at_the_pace_of_the_slowest_link():
    def pace(name, ranks):
        collective = Collective("backward", name, 10**9, tuple(ranks), True)
        return seconds_together(collective, CARD, 8)

    inside = pace("all-gather", range(8))
    assert pace("all-reduce", range(8)) == pytest.approx(2 * inside)
    assert pace("all-gather", range(16)) == pytest.approx(
        inside * (15 / 16) / (7 / 8) * 100 / 80
    )  # 8 networks together
    assert pace("all-gather", (0, 8)) == pytest.approx(inside * (1 / 2) / (7 / 8) * 100 / 10)
    assert pace("all-gather", (0,)) == 0


def test_communication_hides_behind_computation(four):
    phases = predict(four, CARD)
    slow = predict(four, dataclasses.replace(CARD, link=0.01))
    assert all(times.exposed >= times.waited for times in phases.values())
    assert seconds(slow) > seconds(phases) and slow["backward"].exposed > phases["backward"].exposed
    assert json.loads(json.dumps(figures(four, phases)))["seconds"] == pytest.approx(seconds(phases))


# -------------------------------------------------------------------- what fits, and the command


def test_remedies_are_tried_until_one_fits(alone, monkeypatch):
    def card(room):
        return dataclasses.replace(CARD, memory=(room / GIB + 1) / 0.95)

    (first,) = try_remedies(pretraining(), Processes(1), card(0.8 * alone.peak))
    assert first.change == CHECKPOINT and first.step.peak < 0.8 * alone.peak
    steps = {"step": SimpleNamespace(peak=1.0)}
    monkeypatch.setattr(remedies, "simulate", lambda config, processes: steps["step"])
    found = [trial.change for trial in try_remedies(pretraining(), Processes(2), card(0))]
    both = f"{RESHARD} {CHECKPOINT}"
    assert found[:4] == [RESHARD, CHECKPOINT, both, f"{both} --optim.accumulate 2"] and f"{both} --gpus 4" in found
    resharded = Processes(2, reshard=True)
    found = [trial.change for trial in try_remedies(pretraining(activation_checkpointing=True), resharded, card(0))]
    assert found[0] == "--optim.accumulate 2"


def test_a_plan_has_options_of_its_own_and_the_runs():
    mine, rest = plan.sorted_out(
        ["pretrain", "--gpus", "8", "--model", "vits14", "--reshard", "--gpu=l4", "--name", "x"]
    )
    assert mine == ["--gpus", "8", "--reshard", "--gpu=l4"] and rest == ["pretrain", "--model", "vits14", "--name", "x"]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["--model", "vits14"], PretrainConfig),
        (["--student", "vits14"], DistillConfig),
        (["pretrain"], PretrainConfig),
        (["--config", "recipes/configs/vitg14.yaml"], PretrainConfig),
        (["--config=recipes/configs/paper_vits14.yaml"], DistillConfig),
    ],
)
def test_whose_run_it_is(words, kind):
    assert type(plan.config_of(words)) is kind


def test_the_command_shows_and_refuses(monkeypatch, capsys, tmp_path):
    words = ["--config", "recipes/configs/pretrain_demo.yaml", "--loader.batch_size", "8", "--model", "small"]
    words += ["--gpus", "2", "--gpu", "l4"]
    plan.main([*words, "--json", str(tmp_path / "plan.json")])
    shown = capsys.readouterr().out
    assert "Memory of a GPU" in shown and "it fits" in shown and "reduce-scatter" in shown
    assert json.loads((tmp_path / "plan.json").read_text())["gpus"] == 2
    monkeypatch.setitem(chips.CHIPS, "l4", dataclasses.replace(CHIPS["l4"], memory=1.0))
    monkeypatch.setattr(remedies, "try_remedies", lambda *_: [remedies.Trial("--magic", SimpleNamespace(peak=-1e9))])
    with pytest.raises(ConfigError, match=r"does not fit on 2 x l4: try --magic\.$"):
        plan.main(words)
    assert "--magic: -0.9 GiB, fits" in capsys.readouterr().out
