"""
Time and memory of every saliency method over one forward pass without gradients, and over other libraries' own.

    python benchmarks/saliency.py [--rounds 7] [--threads 1] [--sizes 224x224 640x232] [--batch_sizes 2 16]

captum, torch-cam and pytorch-grad-cam are measured where they can be imported. All make their map of the same class,
of the same network (ResNet-18 up to stage 3 with our head), of the same batch, in one process, each in turns with the
forward pass; what is reported is the median of the rounds' ratios. Memory is what a call takes at its peak beyond what
the forward pass takes at its own. At last 1,000 small batches a method: the memory they leave behind.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable

import torch
from measure import BACKBONE, hardware, paired, peak_memory, resident_memory, store
from torch import nn
from transformers import ResNetConfig

from kgl.configuration_kgl import KGLConfig
from kgl.modeling_kgl import KGLForImageClassification
from kgl.saliency.compute import compute_saliency
from kgl.saliency.methods import METHODS


_SLOW = ("smoothgrad", "integrated_gradients")  # dozens of passes: three rounds, on the smallest batch only


class LogitsOnly(nn.Module):
    """Our model as other libraries want one: a tensor in, the logits out."""

    def __init__(self, model: KGLForImageClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


def others(
    model: KGLForImageClassification, images: torch.Tensor, targets: torch.Tensor
) -> dict[str, dict[str, Callable[[], object]]]:
    """Method to library to a call that makes its maps; libraries that cannot be imported are left out."""
    wrapped = LogitsOnly(model)
    layer = model.backbone.encoder.stages[-1]
    calls: dict[str, dict[str, Callable[[], object]]] = {method: {} for method in METHODS}
    if importlib.util.find_spec("captum"):
        from captum import attr

        grad_cam, saliency = attr.LayerGradCam(wrapped, layer), attr.Saliency(wrapped)
        noisy, integrated = attr.NoiseTunnel(attr.Saliency(wrapped)), attr.IntegratedGradients(wrapped)
        calls["gradcam"]["captum"] = lambda: grad_cam.attribute(images, targets)
        calls["inputgrad"]["captum"] = lambda: saliency.attribute(images, targets)
        calls["smoothgrad"]["captum"] = lambda: noisy.attribute(
            images, nt_samples=16, nt_samples_batch_size=1, target=targets
        )
        calls["integrated_gradients"]["captum"] = lambda: integrated.attribute(
            images, target=targets, n_steps=32, internal_batch_size=len(images)
        )
    if importlib.util.find_spec("torchcam"):
        from torchcam import methods

        def torch_cam(kind: str) -> None:
            with getattr(methods, kind)(wrapped, target_layer=layer) as extractor:
                extractor(targets.tolist(), wrapped(images))

        for method, kind in {"gradcam": "GradCAM", "gradcam++": "GradCAMpp", "layercam": "LayerCAM"}.items():
            calls[method]["torch-cam"] = lambda kind=kind: torch_cam(kind)
    try:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError:
        return calls

    def grad_cam_library(kind: str) -> None:
        # Not used as a context manager: that one hides what goes wrong.
        maker = getattr(pytorch_grad_cam, kind)(wrapped, [layer] if kind != "FullGrad" else [])
        maker(images, [ClassifierOutputTarget(target) for target in targets.tolist()])
        maker.activations_and_grads.release()

    kinds = {"gradcam": "GradCAM", "gradcam++": "GradCAMPlusPlus", "hirescam": "HiResCAM", "layercam": "LayerCAM"}
    for method, kind in (kinds | {"fullgrad": "FullGrad"}).items():
        calls[method]["pytorch-grad-cam"] = lambda kind=kind: grad_cam_library(kind)
    return calls


def ours(model: KGLForImageClassification, images: torch.Tensor, targets: torch.Tensor) -> dict[str, Callable]:
    """Method to a call; `layercam at a layer` is the general path, with a backward pass, where ours is closed-form."""
    calls = {method: lambda method=method: compute_saliency(model, images, targets, method) for method in METHODS}
    layer = f"backbone.encoder.stages.{len(BACKBONE.depths) - 1}"
    calls["layercam at a layer"] = lambda: compute_saliency(model, images, targets, "layercam", [layer])
    return calls


def leaves_behind(batches: int) -> dict[str, float]:
    """MiB that the process grew by over `batches` small batches of each method, after a tenth as many to warm up."""
    config = ResNetConfig(
        layer_type="basic", embedding_size=8, depths=[1, 1], hidden_sizes=[8, 16], out_features=["stage2"]
    )
    model = KGLForImageClassification(KGLConfig(backbone_config=config.to_dict(), num_labels=2)).eval()
    images, targets = torch.rand(4, 3, 48, 48), torch.tensor([0, 1, 1, 0])
    grown = {}
    for method in METHODS:
        for _ in range(batches // 10):
            compute_saliency(model, images, targets, method)
        before = resident_memory()
        for _ in range(batches):
            compute_saliency(model, images, targets, method)
        grown[method] = round(resident_memory() - before, 2)
    return grown


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", default=["224x224", "640x232"], help="HEIGHTxWIDTH")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--batches", type=int, default=1000, help="of the memory test at the end, 0: none")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = KGLForImageClassification(KGLConfig(backbone_config=BACKBONE.to_dict(), num_labels=2)).eval().to(device)

    print(f"{hardware()}, {options.threads} threads\n")
    print("| size | batch | method | library | time over a forward pass | quartiles | memory over a forward pass's |")
    print("| --- | ---: | --- | --- | ---: | ---: | ---: |")
    for size in options.sizes:
        height, width = map(int, size.split("x"))
        for batch_size in options.batch_sizes:
            results = []
            images = torch.rand(batch_size, 3, height, width, device=device)
            targets = torch.arange(batch_size, device=device) % 2

            def forward(images: torch.Tensor = images) -> None:
                with torch.no_grad():
                    model(images)

            forward()
            forward_memory = peak_memory(forward)
            rows = [("forward pass (control)", "ours", forward)]
            rows += [(method, "ours", call) for method, call in ours(model, images, targets).items()]
            for method, calls in others(model, images, targets).items():
                rows += [(method, library, call) for library, call in calls.items()]
            for method, library, call in rows:
                if method in _SLOW and batch_size > min(options.batch_sizes):
                    continue
                memory = peak_memory(call)  # first: a call's leftovers would serve the next one
                timed = paired(call, forward, 3 if method in _SLOW else options.rounds, warmups=1)
                results.append({"method": method, "library": library, "mib": memory} | timed)
                print(
                    f"| {size} | {batch_size} | {method} | {library} | {timed['ratio']:.2f} "
                    f"| {timed['quartiles'][0]:.2f} .. {timed['quartiles'][1]:.2f} | {memory / forward_memory:.2f} |",
                    flush=True,
                )
            settings = {"threads": options.threads, "rounds": options.rounds, "forward_mib": forward_memory}
            store(f"saliency_{device}_{batch_size}x{size}", settings, results)
    if options.batches > 0:
        grown = leaves_behind(options.batches)
        print(f"\nMiB grown over {options.batches} batches: {grown}")
        store(f"saliency_{device}_grown", {"batches": options.batches}, grown)


if __name__ == "__main__":
    main()
