"""The benchmark of what guidance and the heat map cost."""

import torch

from kgl.benchmarks.step_cost import DEFAULT_BACKBONE, TITLES, PlainClassifier, cost_table
from kgl.configuration_kgl import KGLConfig
from kgl.modeling_kgl import KGLForImageClassification


def test_table_has_every_ratio_in_order():
    results = {name: {"ratio": 1.0, "quartiles": [0.95, 1.125]} for name in reversed(TITLES)}
    lines = cost_table(results).splitlines()
    assert lines[2] == "| guided step over plain step | 1.000 | 0.950 .. 1.125 |"
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == list(TITLES.values())


def test_plain_classifier_pools_every_stage():
    torch.manual_seed(0)
    config = KGLConfig(backbone_config=DEFAULT_BACKBONE.to_dict(), num_labels=2, head="stages")
    model = KGLForImageClassification(config).eval()
    plain = PlainClassifier(model).eval()
    with torch.no_grad():
        plain.classifier.weight.copy_(model.classifier.weight[:, :-1])  # without the saliency score
        plain.classifier.bias.copy_(model.classifier.bias)
        model.classifier.weight[:, -1] = 0
        images = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(plain(images), model(images).logits)
