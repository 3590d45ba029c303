"""
Compare our PatchCore with anomalib's on the same maps of the same images: AP of defects, one line per seed.

    python benchmarks/evidence/check_patchcore.py --task tiles_defect --budget 8 --seeds 0 1 2 3 --cache_dir CACHE

It needs anomalib (2.7 was tried), which this project does not depend on: install it in an environment of its own. Its
feature extractor is not used; everything after the maps is. The two average cells over 3 x 3 differently (anomalib
before resizing and with zeros around the image) and start their coresets from different cells.
"""

from __future__ import annotations

import argparse
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch


def declare_torchvision_operators() -> torch.library.Library:
    """
    Declare torchvision's operators where its binary part does not fit this PyTorch; anomalib only imports them.

    They last as long as the returned object. Nothing that imports torchvision may be imported before.
    """
    path = Path(find_spec("torchvision").submodule_search_locations[0]) / "_meta_registrations.py"
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted(set(re.findall(r'register_(?:fake|meta)\("(?:torchvision::)?(\w+)"', path.read_text()))):
        library.define(f"{name}(Tensor a) -> Tensor")
    return library


def anomalib_scores(bench: Any) -> np.ndarray:
    """Return the scores `(N,)` of the test images of a `FrozenBench` by anomalib's PatchCore with its settings."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(layers=["layer2", "layer3"], backbone="resnet18", pre_trained=False)
    model.feature_extractor = torch.nn.Identity()
    stages = bench.model.config.saliency_stages

    def embed(rows: np.ndarray) -> torch.Tensor:
        maps = dict(zip(model.layers, bench.maps(rows)[:stages], strict=True))
        maps = {layer: model.feature_pooler(one) for layer, one in maps.items()}
        return model.reshape_embedding(model.generate_embedding(maps))

    model.embedding_store = [embed(bench.rows[~bench.defective])]
    torch.manual_seed(bench.seed)
    model.subsample_embedding(0.1)
    scores = []
    for row in bench.test_rows:
        embedding = embed(np.asarray([row]))
        distances, nearest = model.nearest_neighbors(embedding, n_neighbors=1)
        scores.append(float(model.compute_anomaly_score(distances.view(1, -1), nearest.view(1, -1), embedding)))
    return np.asarray(scores)


def main() -> None:
    """Print a JSON line per seed and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="tiles_defect")
    parser.add_argument("--budget", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--cache_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="a .jsonl file; one in benchmarks/results by default")
    options = parser.parse_args()
    _declared = declare_torchvision_operators()
    from sklearn.metrics import average_precision_score

    from kgl.benchmarks.evidence.bench import Bench
    from kgl.benchmarks.evidence.frozen import patchcore
    from kgl.benchmarks.evidence.records import append_lines
    from kgl.benchmarks.measure import RESULTS

    output = options.output or RESULTS / "patchcore_check.jsonl"
    for seed in options.seeds:
        bench = Bench(options.task, options.budget, seed, False, False, options.cache_dir).frozen
        defective = np.asarray(bench.test_images["label"][:]) != bench.good_id
        ours = 1 - patchcore(bench).call().probabilities[:, bench.good_id]
        theirs = anomalib_scores(bench)
        line = {"task": options.task, "budget": options.budget, "seed": seed}
        line |= {"ap": average_precision_score(defective, ours)}
        line |= {"ap_of_anomalib": average_precision_score(defective, theirs)}
        print(json.dumps(line), flush=True)
        append_lines(output, line)


if __name__ == "__main__":
    main()
