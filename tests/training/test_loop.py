import json
import math

import pytest
import tiny_run
import torch
from safetensors.torch import load_file

from dinov2_zoo.errors import TrainingError
from dinov2_zoo.training.interval import Interval
from dinov2_zoo.training.state import TrainState


def weights(state):
    return {name: tensor.detach().clone() for name, tensor in state.tensors().items()}


def run(runtime, steps=30, *, optim=None, log=None, hooks=(), **batching):
    optim = optim or tiny_run.config(steps)
    state = tiny_run.start(runtime, optim)
    log = log or tiny_run.silent_log(optim.steps)
    tiny_run.train(runtime, state, tiny_run.batches(optim.steps, accumulate=optim.accumulate, **batching), log, hooks)
    return state


def test_the_loss_falls_and_lines_tell_it(runtime, tmp_path):
    state = run(runtime, 60, log=tiny_run.silent_log(60, tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 61)) and state.step == 60
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["match"] == pytest.approx(lines[-1]["loss"])
    assert lines[0]["lr"] == 0.0 and lines[2]["lr"] == pytest.approx(state.schedules.lr(2))
    assert lines[5]["images_per_second"] > 0 and lines[5]["gradient_norm/backbone"] > 0


def test_a_line_is_the_mean_since_the_last_line(runtime, tmp_path):
    every, tenth = tmp_path / "every", tmp_path / "tenth"
    run(runtime, 20, log=tiny_run.silent_log(20, every))
    log = tiny_run.silent_log(20, tenth)
    log.config = type(log.config)(every=10, progress=False)
    run(runtime, 20, log=log)
    fine = [json.loads(line)["loss"] for line in (every / "metrics.jsonl").read_text().splitlines()]
    coarse = [json.loads(line)["loss"] for line in (tenth / "metrics.jsonl").read_text().splitlines()]
    assert coarse == pytest.approx([sum(fine[:10]) / 10, sum(fine[10:]) / 10], rel=1e-6)


def test_what_is_only_looked_at_is_computed_on_logged_steps_only(runtime, tmp_path):
    seen = []

    class Watched(tiny_run.Match):
        def forward(self, batch):
            seen.append(batch.logged)
            terms = super().forward(batch)
            return terms | ({"health/step": self.steps_seen.clone()} if batch.logged else {})

    torch.manual_seed(0)
    state = TrainState.start(runtime.shard(Watched()), tiny_run.config(7, accumulate=2), global_batch=8)
    log = tiny_run.silent_log(7, tmp_path)
    log.config = type(log.config)(every=3, progress=False)
    tiny_run.train(runtime, state, tiny_run.batches(7, accumulate=2), log)
    assert seen == [due for step in range(1, 8) for due in [step in (3, 6, 7)] * 2]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["health/step"] for line in lines] == [5.5, 11.5, 13.5]  # means of the two micro-batches


def test_means_of_bf16_terms_are_exact_over_a_long_interval(runtime, tmp_path):
    """Summed in bf16, whose steps are 2 from 256 on, they would come to a fraction of the mean; in fp32 near it."""
    told = []

    class Half(tiny_run.Match):
        def forward(self, batch):
            terms = {name: term.bfloat16() for name, term in super().forward(batch).items()}
            told.append({name: term.item() for name, term in terms.items()})
            return terms

    torch.manual_seed(0)
    state = TrainState.start(runtime.shard(Half()), tiny_run.config(1000, accumulate=2), global_batch=8)
    log = tiny_run.silent_log(1000, tmp_path)
    log.config = type(log.config)(every=1000, progress=False)
    tiny_run.train(runtime, state, tiny_run.batches(1000, accumulate=2), log)
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(told) == 2000
    for name in ("loss", "match"):
        assert line[name] == pytest.approx(math.fsum(terms[name] for terms in told) / 2000, rel=1e-14)


def test_pace_is_that_of_the_median_step_and_tells_waiting_apart():
    interval = Interval()
    for seconds, waited in ((0.1, 0.05), (0.1, 0.01), (9.0, 0.0)):
        interval.add_step(seconds, waited)
    pace = interval.pace(images=8, steps_left=36_000)
    assert pace == pytest.approx({"images_per_second": 80, "hours_left": 1.0, "data_wait": 0.06 / 3 / 0.1})


def test_teacher_stands_still_and_ema_follows_the_student(runtime):
    optim = tiny_run.config(5, ema_momentum=(0.5, 0.5), warmup_steps=0)
    state = tiny_run.start(runtime, optim)
    teacher = [p.clone() for p in state.module.teacher.parameters()]
    expected = [p.clone() for p in state.ema.parameters()]

    def follow(state, _):
        for e, s in zip(expected, state.student.parameters(), strict=True):
            e.mul_(0.5).add_(s.detach(), alpha=0.5)

    tiny_run.train(runtime, state, tiny_run.batches(5), tiny_run.silent_log(5), [follow])
    assert all(torch.equal(a, b) for a, b in zip(teacher, state.module.teacher.parameters(), strict=True))
    torch.testing.assert_close(list(state.ema.parameters()), expected)
    assert not torch.equal(state.ema.projector.weight, state.student.projector.weight)


def test_accumulation_equals_one_large_batch(runtime, float64):
    whole = run(runtime, optim=tiny_run.config(8))
    parts = run(runtime, optim=tiny_run.config(8, accumulate=2))
    for name, tensor in whole.tensors().items():
        if name != "steps_seen":
            torch.testing.assert_close(parts.tensors()[name], tensor, rtol=0, atol=1e-12)


def test_clipping_is_done_with_the_configured_norm(runtime, tmp_path, float64):
    free = run(runtime, optim=tiny_run.config(3, warmup_steps=0, clip_norm=1e9))
    tight = run(runtime, optim=tiny_run.config(3, warmup_steps=0, clip_norm=1e-9))
    # AdamW's eps makes vanishing gradients vanishing updates: weight decay aside, nothing moves.
    torch.manual_seed(0)
    first = tiny_run.Match().student.projector.weight
    assert (tight.student.projector.weight - first).abs().max() < 0.2 * (
        free.student.projector.weight - first
    ).abs().max()


def test_a_bad_loss_stops_the_run_before_the_update(runtime, tmp_path):
    state = tiny_run.start(runtime, tiny_run.config(10))
    state.module.poison_from = 3
    seen = {}
    with pytest.raises(
        TrainingError, match=r"Step 3, not finite: loss, match.*learning rate .*samples 24, 25"
    ) as error:
        tiny_run.train(
            runtime,
            state,
            tiny_run.batches(10),
            tiny_run.silent_log(10, tmp_path),
            [lambda state, _: seen.update(weights(state))],
        )
    assert "resume from the last checkpoint" in str(error.value)
    assert state.step == 3
    after = weights(state)
    assert all(torch.equal(seen[name], after[name]) for name in seen if name != "steps_seen")
    record = json.loads((tmp_path / "bad_batches/step-3.json").read_text())
    (process,) = record["processes"]
    assert record["step"] == 3 and process["sample_ids"] == list(range(24, 32)) and process["bad"] == ["loss", "match"]
    assert process["terms"] == [{"loss": "nan", "match": "nan"}]
    kept = load_file(tmp_path / "bad_batches/step-3-process-0.safetensors")
    assert torch.equal(kept["0.global_crops"], list(tiny_run.batches(4))[3].global_crops)


def test_bad_steps_are_left_out_up_to_a_number(runtime, tmp_path):
    class Spoilt(tiny_run.Match):
        def forward(self, batch):
            terms = super().forward(batch)
            return {"loss": terms["loss"] * float("inf")} if int(batch.sample_ids[0]) in (16, 40) else terms

    def start(steps, max_bad_steps):
        torch.manual_seed(0)
        optim = tiny_run.config(steps, max_bad_steps=max_bad_steps)
        return TrainState.start(runtime.shard(Spoilt()), optim, global_batch=8)

    state, seen = start(8, 2), {}

    def look(state, line):
        seen[state.step] = (weights(state), line)

    tiny_run.train(runtime, state, tiny_run.batches(8), tiny_run.silent_log(8, tmp_path), [look])
    assert state.step == 8 and state.bad_steps == 2
    for bad in (3, 6):  # nothing moved, not even a statistic, and the numbers stay valid JSON
        assert all(torch.equal(seen[bad - 1][0][name], t) for name, t in seen[bad][0].items())
        assert "loss" not in seen[bad][1] and seen[bad][1]["bad_steps"] in (1, 2)
    assert state.module.steps_seen == 6
    assert {path.name for path in (tmp_path / "bad_batches").glob("*.json")} == {"step-2.json", "step-5.json"}
    assert all("NaN" not in line for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    with pytest.raises(TrainingError, match="bad step number 2 of this run"):
        tiny_run.train(runtime, start(8, 1), tiny_run.batches(8), tiny_run.silent_log(8))


def test_a_request_to_stop_ends_the_run_after_its_step(runtime):
    state, steps = tiny_run.start(runtime, tiny_run.config(10)), []
    hook = lambda state, _: steps.append(state.step)  # noqa: E731
    tiny_run.train(runtime, state, tiny_run.batches(10), tiny_run.silent_log(10), [hook], stop=lambda: len(steps) == 3)
    assert steps == [1, 2, 3, 4] and state.step == 4


def test_a_bad_gradient_of_a_finite_loss_stops_the_run(runtime):
    state = tiny_run.start(runtime, tiny_run.config(10))
    state.student.projector.bias.register_hook(lambda g: g * float("inf"))
    before = weights(state)
    with pytest.raises(TrainingError, match="the gradient"):
        tiny_run.train(runtime, state, tiny_run.batches(10), tiny_run.silent_log(10))
    assert all(torch.equal(before[n], t) for n, t in weights(state).items() if n != "steps_seen")


def test_data_that_ends_early_is_an_error(runtime):
    state = tiny_run.start(runtime, tiny_run.config(10))
    with pytest.raises(TrainingError, match="ended at step 4 of 10"):
        tiny_run.train(runtime, state, tiny_run.batches(4), tiny_run.silent_log(10))


def test_hooks_see_every_step_and_training_mode_comes_back(runtime):
    seen = []

    def hook(state, line):
        seen.append((state.step, "loss" in line, state.student.training))
        state.module.eval()

    run(runtime, optim=tiny_run.config(3), log=tiny_run.silent_log(3), hooks=[hook])
    assert seen == [(1, True, True), (2, True, True), (3, True, True)]
