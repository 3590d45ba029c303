"""
Time and memory of every saliency method over one forward pass without gradients, ours and other libraries'.

    python benchmarks/saliency.py [--rounds 7] [--threads 1] [--sizes 224x224 640x232] [--batch_sizes 2 16]

captum, torch-cam and pytorch-grad-cam are measured where they are installed. All compute the map of the same class of
the same network (ResNet-18 to stage 3 with our head) on the same batch in one process, in turns with the forward pass;
times are the median of the rounds' ratios. Memory is the peak of a call over the peak of the forward pass. At the end,
the memory that the process gained over many small batches of each method.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable

import torch
from torch import nn
from transformers import ResNetConfig

from kgl.benchmarks.measure import BACKBONE, hardware, paired, peak_memory, resident_memory, store
from kgl.configuration_kgl import KGLConfig
from kgl.modeling_kgl import KGLForImageClassification
from kgl.saliency.compute import compute_saliency
from kgl.saliency.methods import METHODS


SLOW_METHODS = ("smoothgrad", "integrated_gradients")  # dozens of passes: three rounds, on the smallest batch only
Call = Callable[[], object]


class LogitsModel(nn.Module):
    """Our model in the form other libraries expect: pixel values to logits."""

    def __init__(self, model: KGLForImageClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


def kgl_calls(model: KGLForImageClassification, images: torch.Tensor, targets: torch.Tensor) -> dict[str, Call]:
    """Return a call per method, and `layercam_at_layer`: the general path with a backward pass, not in closed form."""
    calls = {method: lambda method=method: compute_saliency(model, images, targets, method) for method in METHODS}
    layer = f"backbone.encoder.stages.{len(BACKBONE.depths) - 1}"
    calls["layercam_at_layer"] = lambda: compute_saliency(model, images, targets, "layercam", [layer])
    return calls


def captum_calls(model: nn.Module, layer: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> dict[str, Call]:
    """Return a call per method of captum."""
    from captum import attr

    grad_cam, saliency = attr.LayerGradCam(model, layer), attr.Saliency(model)
    noise, integrated = attr.NoiseTunnel(attr.Saliency(model)), attr.IntegratedGradients(model)
    return {
        "gradcam": lambda: grad_cam.attribute(images, targets),
        "inputgrad": lambda: saliency.attribute(images, targets),
        "smoothgrad": lambda: noise.attribute(images, nt_samples=16, nt_samples_batch_size=1, target=targets),
        "integrated_gradients": lambda: integrated.attribute(
            images, target=targets, n_steps=32, internal_batch_size=len(images)
        ),
    }


def torch_cam_calls(
    model: nn.Module, layer: nn.Module, images: torch.Tensor, targets: torch.Tensor
) -> dict[str, Call]:
    """Return a call per method of torch-cam."""
    from torchcam import methods

    def call(extractor_class: type) -> None:
        with extractor_class(model, target_layer=layer) as extractor:
            extractor(targets.tolist(), model(images))

    classes = {"gradcam": methods.GradCAM, "gradcam++": methods.GradCAMpp, "layercam": methods.LayerCAM}
    return {method: lambda one=one: call(one) for method, one in classes.items()}


def grad_cam_calls(model: nn.Module, layer: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> dict[str, Call]:
    """Return a call per method of pytorch-grad-cam."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def call(extractor_class: type, layers: list[nn.Module]) -> None:
        extractor = extractor_class(model, layers)  # its context manager would hide errors
        extractor(images, [ClassifierOutputTarget(target) for target in targets.tolist()])
        extractor.activations_and_grads.release()

    classes = {
        "gradcam": pytorch_grad_cam.GradCAM,
        "gradcam++": pytorch_grad_cam.GradCAMPlusPlus,
        "hirescam": pytorch_grad_cam.HiResCAM,
        "layercam": pytorch_grad_cam.LayerCAM,
        "fullgrad": pytorch_grad_cam.FullGrad,
    }
    return {
        method: lambda one=one, layers=[] if method == "fullgrad" else [layer]: call(one, layers)
        for method, one in classes.items()
    }


LIBRARIES = {  # name: module to look for, calls
    "captum": ("captum", captum_calls),
    "torch-cam": ("torchcam", torch_cam_calls),
    "pytorch-grad-cam": ("pytorch_grad_cam", grad_cam_calls),
}


def all_calls(
    model: KGLForImageClassification, images: torch.Tensor, targets: torch.Tensor
) -> list[tuple[str, str, Call]]:
    """Return method, library and call of everything that is installed."""
    ours = kgl_calls(model, images, targets)
    rows = [(method, "kgl", call) for method, call in ours.items()]
    wrapped, layer = LogitsModel(model), model.backbone.encoder.stages[-1]
    for library, (module, calls_of) in LIBRARIES.items():
        if importlib.util.find_spec(module):
            rows += [(method, library, call) for method, call in calls_of(wrapped, layer, images, targets).items()]
    return sorted(rows, key=lambda row: list(ours).index(row[0]))


def memory_growth(batches: int) -> dict[str, float]:
    """Return the MiB that the process gained over `batches` small batches of each method, after a warm-up."""
    config = ResNetConfig(
        layer_type="basic", embedding_size=8, depths=[1, 1], hidden_sizes=[8, 16], out_features=["stage2"]
    )
    model = KGLForImageClassification(KGLConfig(backbone_config=config.to_dict(), num_labels=2)).eval()
    images, targets = torch.rand(4, 3, 48, 48), torch.tensor([0, 1, 1, 0])
    growth = {}
    for method in METHODS:
        for _ in range(batches // 10):
            compute_saliency(model, images, targets, method)
        before = resident_memory()
        for _ in range(batches):
            compute_saliency(model, images, targets, method)
        growth[method] = round(resident_memory() - before, 2)
    return growth


def measure_size(
    model: KGLForImageClassification, size: tuple[int, int], batch_size: int, rounds: int, slow: bool
) -> tuple[float, list[dict[str, object]]]:
    """
    Measure every method on batches of one size, and print a row per method and library.

    Args:
        model: the network.
        size: height and width of the images.
        batch_size: images per batch.
        rounds: of the timing.
        slow: include `SLOW_METHODS`.

    Returns:
        The peak memory of a forward pass in MiB, and time and memory of each method and library.
    """
    images = torch.rand(batch_size, 3, *size, device=model.device)
    targets = torch.arange(batch_size, device=model.device) % 2

    def forward() -> None:
        with torch.no_grad():
            model(images)

    forward()
    forward_memory = peak_memory(forward)
    results = []
    for method, library, call in [("forward_pass", "kgl", forward), *all_calls(model, images, targets)]:
        if method in SLOW_METHODS and not slow:
            continue
        memory = peak_memory(call)  # before the timing, whose memory the call could reuse
        timed = paired(call, forward, 3 if method in SLOW_METHODS else rounds, warmups=1)
        results.append({"method": method, "library": library, "peak_mib": memory} | timed)
        print(
            f"| {size[0]}x{size[1]} | {batch_size} | {method} | {library} | {timed['ratio']:.2f} "
            f"| {timed['quartiles'][0]:.2f} .. {timed['quartiles'][1]:.2f} | {memory / forward_memory:.2f} |",
            flush=True,
        )
    return forward_memory, results


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", default=["224x224", "640x232"], help="HEIGHTxWIDTH")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--batches", type=int, default=1000, help="of the memory test at the end; 0: no such test")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = KGLForImageClassification(KGLConfig(backbone_config=BACKBONE.to_dict(), num_labels=2)).eval().to(device)

    print(f"{hardware()}, {options.threads} threads\n")
    print("| size | batch size | method | library | time over a forward pass | quartiles | memory over its memory |")
    print("| --- | ---: | --- | --- | ---: | ---: | ---: |")
    for size in options.sizes:
        height, width = map(int, size.split("x"))
        for batch_size in options.batch_sizes:
            slow = batch_size == min(options.batch_sizes)
            memory, results = measure_size(model, (height, width), batch_size, options.rounds, slow)
            settings = {"threads": options.threads, "rounds": options.rounds, "forward_peak_mib": memory}
            store(f"saliency_{device}_{batch_size}x{size}", settings, results)
    if options.batches > 0:
        growth = memory_growth(options.batches)
        print(f"\nMiB gained over {options.batches} batches: {growth}")
        store(f"saliency_{device}_memory_growth", {"batches": options.batches}, growth)


if __name__ == "__main__":
    main()
