"""The networks of reproduction/ for torch.hub, with 100 classes and for images of 32x32 pixels.

::

    torch.hub.list("<owner>/<repository>")
    network = torch.hub.load("<owner>/<repository>", "resnet50", num_classes=10)

The definitions come from the notebooks; ``python reproduction/networks.py`` prints all names.
"""

from reproduction import networks as _networks

dependencies = ["torch", "torchvision", "timm", "IPython", "jupytext", "matplotlib"]


def _entry(name: str):
    def build(num_classes: int = 100):
        return _networks.build(name, num_classes)

    build.__name__ = name
    build.__doc__ = f"(B, 3, 32, 32) -> (B, num_classes): {_networks.NETWORKS[name].form}."
    return build


globals().update({name: _entry(name) for name in _networks.NETWORKS})
