"""The module that a run trains, from its configuration."""

from dataclasses import replace

import torch
from torch import nn

from dinov2_zoo.config import DistillConfig, PretrainConfig, all_problems
from dinov2_zoo.config.distill import INITS
from dinov2_zoo.hub.further_teachers import load_further_teachers
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.hub.teacher import heads_beside, load_teacher, load_teacher_with_heads, network_of_stored
from dinov2_zoo.initialisation.selected import check_fits
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector, PrototypeHead
from dinov2_zoo.models.students import TimmStudent, build_student, check_student
from dinov2_zoo.models.teacher_view import TeacherView
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import model_config
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.self_distillation import SelfDistillation
from dinov2_zoo.objectives.several_teachers import FurtherTeachers, SeveralTeachers
from dinov2_zoo.targets.store import TargetStore
from dinov2_zoo.weights.heads import load_heads


def build_distillations(config: DistillConfig, store: TargetStore | None = None) -> list[Distillation]:
    """One module for each student, all with the same teachers. `store` is as for `build_distillation`."""
    for name in config.names if config.init in INITS else ():
        check_student(name)  # before a teacher of gigabytes is fetched
    found: list[Distillation] = []
    for one in config.each():
        first = found[0] if found else None
        further = first.further if isinstance(first, SeveralTeachers) else None
        found.append(build_distillation(one, first.teacher if first else None, store, further))
    return found


def build_distillation(
    config: DistillConfig,
    teacher: Branch | None = None,
    store: TargetStore | None = None,
    further: FurtherTeachers | None = None,
) -> Distillation:
    """Teacher, student with random or earlier weights, and the objective between them.

    Args:
        config: Of the run.
        teacher: Read, unless it is given.
        store: What the teacher said of its crops: its network is then left out. It is loaded for a moment where the
            student's first weights will be made of it, or it has another name than it had: to see that it is the one.
        further: The teachers beside the main one, where there are several; read, unless they are given.
    """
    prototypes = config.objective.kind == "prototypes"
    stored = store.backbone() if store else None
    if teacher is None and prototypes:
        teacher = load_teacher_with_heads(
            config.teacher, config.heads, dino=config.dino_head, ibot=config.ibot_head, stored=stored
        )
    elif teacher is None:
        teacher = Branch(stored) if stored else load_teacher(config.main_teacher)
    if further is None and config.further_teachers:
        assert isinstance(teacher.backbone, VisionTransformer)
        further = load_further_teachers(config, teacher.backbone.patch_size)
    torch.manual_seed(config.runtime.seed)  # a student is drawn alike whatever was drawn before it
    size, earlier = config.crops.global_size, None if config.init in INITS else config.init
    student = Dinov2Model.from_pretrained(earlier, img_size=size) if earlier else build_student(config.student, size)
    dim = student.embed_dim
    if prototypes:
        assert teacher.dino is not None and teacher.ibot is not None
        dino = PrototypeHead(dim, replace(config.dino_head, prototypes=teacher.dino.count))
        ibot = PrototypeHead(dim, replace(config.ibot_head, prototypes=teacher.ibot.count))
        if file := heads_beside(earlier) if earlier else None:
            dino, ibot = load_heads(file, dim, student.state_dict())
        branch = Branch(student, dino=dino, ibot=ibot)
    else:
        if isinstance(student, TimmStudent) and config.crops.local_count:
            student.try_size(config.crops.local_size, "set --crops.local_count 0")
        kind = config.objective.features.projector
        projector = FeatureProjector(student.class_dim, dim, teacher.backbone.embed_dim, kind)
        spaces = [(theirs.embed_dim, theirs.class_dim) for theirs in further.backbones] if further else []
        others = [FeatureProjector(student.class_dim, dim, d, kind, teacher_class_dim=c) for d, c in spaces]
        branch = Branch(student, projector=projector, further=others)
    backbone, from_teacher = teacher.backbone, starts_from_teacher(config, student)
    if store and (from_teacher or config.teacher != store.manifest.settings["teacher"]):
        backbone = network_of_stored(config.teacher, store)
    assert not isinstance(backbone, TimmStudent | TeacherView)
    with all_problems():
        if from_teacher:
            assert isinstance(backbone, VisionTransformer) and isinstance(student, VisionTransformer)
            check_fits(backbone, student)
        config.check_patch(backbone.patch_size)
        if isinstance(student, TimmStudent) and config.finish.share:
            for side in config.finish.sides(size, backbone.patch_size):
                student.try_size(side, "set --finish.sizes to sizes it takes")
    if further is None:
        return Distillation(branch, teacher, config.objective)
    names, seed = config.teacher_names, config.runtime.seed
    return SeveralTeachers(branch, teacher, further, config.objective, names=names, settings=config.teachers, seed=seed)


def starts_from_teacher(config: DistillConfig, student: nn.Module) -> bool:
    """Whether a student's first weights are made of its teacher's."""
    return config.init in ("fitted", "selected") and not isinstance(student, TimmStudent)


def build_self_distillation(config: PretrainConfig, network: VisionTransformer | None = None) -> SelfDistillation:
    """Student, its average, and the losses between them.

    Args:
        config: Of the run.
        network: The backbone, with new heads; default: that of `init`, read or drawn.
    """
    heads = None
    if network is not None:
        backbone = network
    elif config.init != "random":
        # A frozen backbone keeps the positions it has; another grows or shrinks them to its new size once.
        size = None if config.freeze_backbone else config.crops.global_size
        backbone = Dinov2Model.from_pretrained(config.init, img_size=size)
        file = heads_beside(config.init)
        heads = load_heads(file, backbone.embed_dim, backbone.state_dict()) if file else None
    else:
        shape = model_config(config.model)
        ffn = config.ffn or shape.ffn
        shape = replace(shape, patch_size=config.patch_size, img_size=config.crops.global_size, ffn=ffn)
        backbone = VisionTransformer(shape)
    config.check_patch(backbone.patch_size)
    backbone.requires_grad_(not config.freeze_backbone)
    dino, ibot = heads or (PrototypeHead(backbone.embed_dim, head) for head in (config.dino_head, config.ibot_head))
    tied = config.self_distillation.tied_heads
    branch = Branch(backbone, dino=dino, ibot=None if tied else ibot, tied=tied)
    return SelfDistillation(branch, config.losses, config.self_distillation)
