"""A small random model and stand-ins for processes, for the tests of evaluation."""

import threading

import torch

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.evaluation.encoders.encoder import BackboneEncoder
from dinov2_zoo.evaluation.workspace import Workspace, silent
from dinov2_zoo.models.tokens import Tokens
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.training.distributed import SingleProcess


def tiny_encoder(dim=32, depth=4, seed=0):
    """Four blocks of width 32, patch 14, random weights."""
    model = VisionTransformer(ModelConfig(embed_dim=dim, depth=depth, num_heads=2, img_size=56, num_registers=0))
    draw = torch.Generator().manual_seed(seed)  # its own: tests run it in several threads
    for parameter in model.parameters():  # tokens start at 1e-6: let them all differ
        torch.nn.init.normal_(parameter, std=0.1, generator=draw)
    return BackboneEncoder(model)


def workspace(folder, context=None, say=silent):
    """One process that keeps its work in a folder."""
    return Workspace(context or SingleProcess(), folder, say)


class Part(SingleProcess):
    """One process of several that never has to wait."""

    def __init__(self, rank, world_size):
        super().__init__()
        self.rank, self.world_size = rank, world_size
        self.is_main = rank == 0


class Together(Part):
    """DistributedContext as threads, with real exchange. Make them with `together`."""

    def __init__(self, rank, world_size, shared):
        super().__init__(rank, world_size)
        self.shared = shared

    def barrier(self):
        self.shared["barrier"].wait(timeout=60)

    def gather(self, value):
        self.shared["values"][self.rank] = value
        self.barrier()
        found = list(self.shared["values"])
        self.barrier()
        return found

    def sum(self, values):
        total = torch.stack(self.gather(values.clone())).sum(0)
        return values.copy_(total)


def together(work, world_size=2):
    """Run `work(processes)` on as many threads, and return what each gives."""
    shared = {"barrier": threading.Barrier(world_size), "values": [None] * world_size}
    found, errors = [None] * world_size, []

    def run(rank):
        try:
            found[rank] = work(Together(rank, world_size, shared))
        except BaseException as error:
            errors.append(error)
            shared["barrier"].abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


class ColourEncoder:
    """A model whose patch tokens are what a patch looks like on the mean, made wide enough to tell shades apart.

    Args:
        patch: Side of a patch, pixels.
        noise: Tokens are random instead, another draw for each patch of each image.
    """

    depth, dim, device = 1, 192, torch.device("cpu")

    def __init__(self, patch=14, *, noise=False):
        self.patch_size = patch
        self.draw = torch.Generator().manual_seed(0) if noise else None
        # Random waves of the colour: the cosine of two tokens falls with the distance of their colours.
        self.waves = 6 * torch.randn(3, 96, generator=torch.Generator().manual_seed(1))

    def fingerprint(self):
        return "colours"

    def __call__(self, images):
        colour = torch.nn.functional.avg_pool2d(images, self.patch_size).flatten(2).transpose(1, 2)
        waves = colour @ self.waves
        tokens = torch.cat([waves.sin(), waves.cos()], 2)
        if self.draw is not None:
            tokens = torch.randn(tokens.shape, generator=self.draw)
        return Tokens(tokens.mean(1), tokens)
