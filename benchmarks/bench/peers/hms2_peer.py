"""hms2 (the implementation published with the 2022 paper), given its checkout: ``--peer hms2=PATH``.

As shipped: tiles of 2,048 px, embeddings cropped by 7 cells, constant tiles cached, tiles without gradient skipped,
pooling per tile. Gamma and beta are trained, statistics fixed. Its loader needs ``torchvision``, ``opencv-python`` and
``Pillow`` beside PyTorch.
"""

import measure
import torch
import torch_resnet

TILE = 2048
CROP, STRIDE = 7, 32  # of its ResNet-50, in cells and in pixels


class Pool(torch.nn.Module):
    """Global pooling of a map that keeps its four dimensions, as hms2 pools each tile."""

    def __init__(self, pooling):
        super().__init__()
        self.pooling = pooling

    def forward(self, x):
        return torch_resnet.pool(x, self.pooling)[:, :, None, None]


def make(given, device, dtype):
    """Its model."""
    from hms2.core.loader_modules import PlainLoaderModule
    from hms2.core.model import Hms2Model

    trunk, dense = torch_resnet.load(given["backbone"], given["values"], dtype, device)
    return Hms2Model(
        loader_module=PlainLoaderModule().to(device),
        conv_module=trunk,
        dense_module=torch.nn.Sequential(Pool(given["pooling"]), torch.nn.Flatten(), dense),
        local_pooling_module=Pool(given["pooling"]),
        tile_size=given["tile"] or TILE,
        emb_crop_size=CROP,
        emb_stride_size=STRIDE,
    ).eval()  # no statistics are taken, and nothing is augmented


def main():
    given = measure.orders()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    idle = measure.resident_bytes()
    model = make(given, device, getattr(torch, given["compute"]))
    image, label = torch.from_numpy(given["pixels"])[None], torch.tensor([given["label"]], device=device)
    training = given["mode"] == "train"
    optimiser = torch.optim.Adam(model.parameters(), 1e-4)

    def step():
        optimiser.zero_grad()
        with torch.set_grad_enabled(training):
            loss = torch.nn.functional.cross_entropy(model(image), label)
            if training:
                loss.backward()
                optimiser.step()
        return loss.item()

    found = measure.timed(given, step, idle, measure.cuda_peak)
    found["settings"] = {"tile": given["tile"] or TILE}
    found["versions"] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    measure.report(found)


if __name__ == "__main__":
    main()
