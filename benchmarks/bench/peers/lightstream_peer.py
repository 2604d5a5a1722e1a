"""lightstream (PyPI, PyTorch): the streaming CNN of 2019 (Pinckaers et al.) as its authors ship it.

Gamma and beta of batch norm are frozen, as lightstream freezes them. Its tiles must be far larger than what it takes
for lost at their borders: with ResNet-18, those of 768 px fail in its backward pass. It needs ``lightning`` and
``torchvision`` beside PyTorch.
"""

import measure
import numpy as np
import torch
import torch_resnet

TILE = 2048


def make(given, device, dtype):
    """The streamed trunk and the dense layer."""
    from lightstream.core.constructor import StreamingConstructor
    from lightstream.core.utils import freeze_normalization_layers

    trunk, dense = torch_resnet.load(given["backbone"], given["values"], dtype, device)
    freeze_normalization_layers(trunk)
    constructor = StreamingConstructor(
        trunk,
        given["tile"] or TILE,
        verbose=False,
        statistics_on_cpu=True,  # else its constructor moves the network to a GPU
        normalize_on_gpu=True,
        mean=torch_resnet.MEAN,
        std=torch_resnet.DEVIATION,
        add_keep_modules=[torch.nn.BatchNorm2d],
    )
    constructor.statistics_on_cpu = device.type == "cuda"
    streamed = constructor.prepare_streaming_model()
    freeze_normalization_layers(streamed.stream_module)  # its constructor restores layers from a copy
    streamed.mean, streamed.std = (
        torch.tensor(values, dtype=dtype, device=device)[:, None, None]
        for values in (torch_resnet.MEAN, torch_resnet.DEVIATION)
    )
    return streamed, dense


def main():
    given = measure.orders()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, given["compute"])
    idle = measure.resident_bytes()
    streamed, dense = make(given, device, dtype)
    image = torch.from_numpy(np.ascontiguousarray(given["pixels"].transpose(2, 0, 1))[None])
    label = torch.tensor([given["label"]], device=device)
    trained = [value for value in streamed.parameters() if value.requires_grad] + list(dense.parameters())
    optimiser = torch.optim.Adam(trained, 1e-4)

    def step():
        optimiser.zero_grad()
        embedding = streamed(image)
        embedding.requires_grad = given["mode"] == "train"
        with torch.set_grad_enabled(given["mode"] == "train"):
            loss = torch.nn.functional.cross_entropy(dense(torch_resnet.pool(embedding, given["pooling"])), label)
        if given["mode"] == "train":
            loss.backward()
            streamed.backward(image, embedding.grad)
            if not given.get("gradients"):
                optimiser.step()
        return loss.item()

    found = measure.timed(given, step, idle, measure.cuda_peak)
    if given.get("gradients"):
        named = [
            (torch_resnet.torchvision_name(name), value) for name, value in streamed.stream_module.named_parameters()
        ]
        named += [("fc." + name, value) for name, value in dense.named_parameters()]
        np.savez(
            given["gradients"], **{name: value.grad.cpu().numpy() for name, value in named if value.grad is not None}
        )
    found["settings"] = {"tile": given["tile"] or TILE, "gamma and beta": "frozen"}
    found["versions"] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    try:
        from importlib.metadata import version

        found["versions"]["lightstream"] = version("lightstream")
    except ImportError:
        pass
    measure.report(found)


if __name__ == "__main__":
    main()
