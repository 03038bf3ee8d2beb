"""Time of a forward and backward pass over global and local crops: one packed row, against a pass for each size.

Run  python benchmarks/packing.py [--depth 12] [--images 5] [--device cuda]
Packing saves kernel launches and fills a GPU at small batches; on a CPU, which is full at once, little is to be gained.
"""

import network
import torch
from paired import paired_seconds, ratio


def main() -> None:
    options = network.parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    model, groups = network.build(options)

    def packed() -> None:
        network.forward_backward(model, lambda: model.forward_features(groups), options.device)

    def separate() -> None:
        network.forward_backward(model, lambda: [model.forward_features(x) for x in groups], options.device)

    pairs = paired_seconds(packed, separate, options.rounds)
    ours, theirs = network.seconds(pairs)
    print(network.title(options))
    print(f"seconds               {ours} packed, {theirs} separate")
    print(f"separate over packed  {ratio(pairs)}")


if __name__ == "__main__":
    main()
