"""The exported resize against Pillow."""

import numpy as np
import torch
from PIL import Image

from kgl.exporters.resize import resize_as_pillow


def test_resize_equals_pillow():
    generator = np.random.default_rng(0)
    sizes = [tuple(int(side) for side in generator.integers(1, 100, 4)) for _ in range(60)]
    sizes += [(6 * 7, 3 * 9, 7, 9), (20, 20, 20, 20), (20, 50, 20, 33), (50, 20, 33, 20)]  # ties, unchanged sides
    sizes += [(300, 211, 33, 17), (2, 3, 150, 90)]  # strong shrinking and growing
    sizes += [(50 + 2 * 9 + more, 29, 50, 20) for more in (-1, 0, 1)]  # where Pillow changes the order of its passes
    for height, width, new_height, new_width in sizes:
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
        resized = resize_as_pillow(torch.from_numpy(image).permute(2, 0, 1)[None], (new_height, new_width))
        np.testing.assert_array_equal(
            resized[0].permute(1, 2, 0).numpy(), expected, err_msg=f"{height} {width} {new_height} {new_width}"
        )
