"""Collapse is warned of, once, with a remedy; a sound run and a warm-up are left in peace."""

from types import SimpleNamespace

import pytest

from dinov2_zoo.training.health_watch import LIMITS, HealthWatch

SOUND = {name: 2 * limit for name, limit, _ in LIMITS}


def said(lines, from_step=10):
    words = []
    watch = HealthWatch(words.append, from_step=from_step)
    for step, line in lines:
        watch(SimpleNamespace(step=step), line)
    return words


@pytest.mark.parametrize("name", [name for name, *_ in LIMITS])
def test_a_metric_that_stays_low_is_warned_of_once_with_a_remedy(name):
    limit = SOUND[name] / 2
    words = said([(step, SOUND | {name: limit / 2}) for step in range(11, 16)])
    assert len(words) == 1 and "step 12" in words[0]
    assert any(remedy in words[0] for remedy in ("lower optim.base_lr", "Lower the teacher's temperature"))


def test_one_low_line_a_warm_up_and_a_sound_run_say_nothing():
    low = dict.fromkeys(SOUND, 0.0)
    assert said([(11, low), (12, SOUND), (13, low), (14, SOUND)]) == []
    assert said([(step, low) for step in range(1, 11)]) == []
    assert said([(step, SOUND) for step in range(11, 30)]) == []
    assert said([(step, {}) for step in range(11, 30)]) == []  # distillation has no such metrics
