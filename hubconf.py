"""The networks of reproduction/ for torch.hub, with 100 classes and for images of 32x32 pixels.

::

    torch.hub.list("<owner>/<repository>")
    network = torch.hub.load("<owner>/<repository>", "resnet50", num_classes=10)

The definitions come from the notebooks; ``python reproduction/networks.py`` prints all names.
"""

dependencies = ["torch", "torchvision", "timm", "IPython", "jupytext", "matplotlib"]


def _entry(name: str):
    def build(num_classes: int = 100):
        from reproduction import networks

        return networks.build(name, num_classes)

    build.__name__ = name
    return build


def _entries() -> dict:
    from reproduction.networks import NETWORKS

    found = {}
    for name, entry in NETWORKS.items():
        found[name] = _entry(name)
        found[name].__doc__ = f"(B, 3, 32, 32) -> (B, num_classes): {entry.form}."
    return found


globals().update(_entries())
