"""Time of a forward and backward pass with stochastic depth: on the kept sequences only, against on all of them.

Run  python benchmarks/stochastic_depth.py [--rates 0.3 0.4] [--depth 12] [--images 5] [--device cuda]
Three ways: `subset` leaves sequences out beforehand (this package), `naive` computes everyone and drops, `none` has no
stochastic depth. The draws are part of the measured time. Multiples of 5 images keep exactly 70 % and 60 %.
"""

from unittest import mock

import network
import torch
from paired import paired_seconds, ratio

from dinov2_zoo.data.drop_path import DropPath, Share, draw_kept
from dinov2_zoo.models import block
from dinov2_zoo.models.stochastic_depth import naive_residual, subsets_of


def main() -> None:
    parser = network.parser(__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.3, 0.4])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, groups = network.build(options)
    packing, images = model.packing(groups), options.images

    def features(rate: float) -> list[dict[str, torch.Tensor]]:
        if not rate:
            return model.forward_features(groups)
        kept = draw_kept(DropPath(rate, options.depth, seed=0), network.VIEWS, Share(0, 0, images, images))
        on_device = [group.map(lambda x: x.to(options.device)) for group in kept]
        return model.forward_features(groups, None, subsets_of(on_device, packing))

    def subset(rate: float) -> None:
        network.forward_backward(model, lambda: features(rate), options.device)

    def naive(rate: float) -> None:
        with mock.patch.object(block, "subset_residual", naive_residual):
            subset(rate)

    print(network.title(options))
    for rate in options.rates:
        against_naive = paired_seconds(lambda r=rate: subset(r), lambda r=rate: naive(r), options.rounds)
        against_none = paired_seconds(lambda r=rate: subset(r), lambda: subset(0.0), options.rounds)
        ours, theirs = network.seconds(against_naive)
        print(
            f"rate {rate}   seconds             {ours} subset, {theirs} naive, {network.seconds(against_none)[1]} none"
        )
        for name, pairs in (("naive", against_naive), ("none", against_none)):
            gain = ratio(pairs)
            print(f"           {name:5} over subset   {gain}: a step {1 - 1 / gain.median:.0%} shorter")


if __name__ == "__main__":
    main()
