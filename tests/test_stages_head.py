"""The head `stages`: formula, cells, gradients, precision, saving and loading."""

import torch
from tiny import four_stages, stages_model
from torch.nn import functional as F
from transformers import ResNetModel

from kgl.heads_kgl import top_cells
from kgl.modeling_kgl import KGLForImageClassification


def average_of_neighbours(maps):
    """Return the mean of each cell and its eight neighbours, 0 outside the image."""
    padded, averaged = F.pad(maps, (1, 1, 1, 1)), torch.zeros_like(maps)
    for row in range(maps.shape[2]):
        for column in range(maps.shape[3]):
            averaged[:, :, row, column] = padded[:, :, row : row + 3, column : column + 3].mean(dim=(2, 3))
    return averaged


def test_logits_follow_formula():
    """Cell by cell: averaged over its neighbours, fused at the first stage's size, its distance, top cells."""
    model, pixel_values = stages_model(temperature=2.0), torch.randn(2, 3, 64, 96)
    maps = model.backbone(pixel_values).feature_maps
    assert [tuple(one.shape[-2:]) for one in maps] == [(8, 12), (4, 6), (2, 3)]
    head = model.saliency_head
    averaged = [average_of_neighbours(one) for one in maps[:2]]
    cells = sum(
        F.interpolate(
            torch.einsum("dc,bchw->bdhw", layer.weight[:, :, 0, 0], one) + layer.bias[:, None, None],
            size=(8, 12), mode="bilinear",
        )
        for layer, one in zip(head.fusion.projections, averaged, strict=True)
    )  # fmt: skip
    torch.testing.assert_close(head.cells(maps[:2]), cells, rtol=1e-4, atol=1e-5)
    memory = head.memory.weight[:, :, 0, 0]
    distance = (cells[:, None] - memory[None, :, :, None, None]).norm(dim=2).amin(dim=1, keepdim=True)
    torch.testing.assert_close(head.distances(cells), distance, rtol=1e-3, atol=1e-3)
    features = torch.cat([cells, distance], dim=1)
    saliency = torch.einsum("od,bdhw->bohw", head.output.weight[:, :, 0, 0], features) + head.output.bias
    pooled = torch.cat([part for one in maps for part in (one.mean(dim=(2, 3)), one.amax(dim=(2, 3)))], dim=1)
    top = saliency.flatten(1).sort(dim=1).values[:, -5:].mean(dim=1, keepdim=True)  # 5 % of 96 cells
    logits = F.linear(torch.cat([pooled, top], dim=1), model.classifier.weight, model.classifier.bias) / 2
    output = model(pixel_values)
    torch.testing.assert_close(output.saliency, saliency, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-4)
    assert [one.shape[1] for one in output.feature_maps] == [12, 16, 20]
    assert model.saliency_grid((64, 96)) == (8, 12)


def test_top_cells_are_one_at_least():
    saliency = torch.tensor([[[[1.0, 4.0], [3.0, 2.0]]]])
    assert top_cells(saliency, 0.05).tolist() == [[4.0]]
    assert top_cells(saliency, 0.5).tolist() == [[3.5]]
    assert top_cells(saliency, 1.0).tolist() == [[2.5]]


def test_saliency_grid_leaves_the_mode_alone():
    model = stages_model().train()
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    assert model.saliency_grid((32, 64)) == (4, 8) and model.training
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())


def test_classification_alone_trains_every_parameter():
    """H has a gradient through its top cells."""
    model = stages_model().train()
    model(torch.randn(4, 3, 64, 64), labels=torch.tensor([0, 1, 2, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_half_precision_is_close():
    model, pixel_values = stages_model(), torch.randn(2, 3, 64, 64)
    expected = model(pixel_values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(pixel_values)
    half = stages_model().bfloat16()(pixel_values.bfloat16())
    for output in (mixed, half):
        assert output.logits.dtype == torch.bfloat16
        spread = expected.logits.std()
        assert (output.logits.float() - expected.logits).abs().max() < 0.1 * spread
        assert (output.saliency.float() - expected.saliency).abs().max() < 0.2 * expected.saliency.std()


def test_saved_head_is_loaded(tmp_path):
    model, pixel_values = stages_model(top_cells=0.2, saliency_threshold={"threshold": 0.7}), torch.randn(2, 3, 64, 64)
    model.save_pretrained(tmp_path)
    loaded = KGLForImageClassification.from_pretrained(tmp_path)
    assert (loaded.config.head, loaded.config.top_cells, loaded.config.cell_size) == ("stages", 0.2, 6)
    assert loaded.config.saliency_threshold == {"threshold": 0.7}
    assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)
    assert torch.equal(loaded(pixel_values).saliency, model(pixel_values).saliency)


def test_from_backbone_keeps_weights(tmp_path):
    torch.manual_seed(0)
    resnet = ResNetModel(four_stages()).eval()
    resnet.save_pretrained(tmp_path)
    stages = {"out_features": ["stage2", "stage3", "stage4"], "head": "stages", "saliency_stages": 1}
    model = KGLForImageClassification.from_backbone(str(tmp_path), num_labels=2, **stages).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    hidden_states = resnet(pixel_values, output_hidden_states=True).hidden_states
    torch.testing.assert_close(model(pixel_values).feature_maps, hidden_states[2:])
    assert model.classifier.in_features == 2 * (12 + 16 + 20) + 1
    assert [one.in_channels for one in model.saliency_head.fusion.projections] == [12]
