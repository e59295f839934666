"""The lint finds each fault it is there for, and the notebooks have none."""

import pytest

from lint import faults, main
from loader import NOTEBOOKS
from sites import HEADER


@pytest.mark.parametrize(
    ("cells", "line", "message"),
    [
        ("# %%\nmodel.cuda()\n", 10, "workbench.device"),
        ("# %%\nw = torch.load(path)\n", 10, "weights_only"),
        ("# %%\nimport torchtext\n", 10, "torchtext"),
        ("# %%\nfrom resnet import block\n", 10, "imports the notebook resnet"),
        (f"# %%\nx = 1  # {'long' * 21}\n", 10, "wider than the 88 columns"),
        ("# %%\na, b = f(x), g(x)\n", 10, "a line for each"),
        ("# %%\nif x:\n    rows, found = [], {}\n", 11, "a line for each"),
        ("x = 1\n# %%\n", 9, "before the first cell marker"),
        ("# %%\nimport os\nfrom matplotlib import pyplot\n", 11, "import plots"),
        ("# %%\nx = 1\nassert x == 1\n", 11, "a bare assert in a running cell"),
        ("# %%\nfor x in (1, 2):\n    assert x\n", 11, "a bare assert in a running cell"),
        ("# %%\nif PROFILE == 'sample':\n    assert x\n", 10, "leave the guard away"),
        ("# %%\nif y and workbench.PROFILE == 'sample':\n    claim(x, 'x')\n", 10, "the guard"),
        ("# %%\nassert PROFILE == 'full' or x\n", 10, "a bare assert in a running cell"),
        ("# %%\nclaim(PROFILE == 'full' or x, 'x')\n", 10, "out of the condition"),
        ("# %%\nclaim(x and not a < b, 'x')\n", 10, "is true of NaN"),
    ],
)
def test_a_fault_is_found_at_its_line(cells, line, message):
    found = list(faults(HEADER + cells, {"resnet"}))
    assert [number for number, _ in found] == [line]
    assert message in found[0][1]


def test_a_missing_header_is_found():
    assert [line for line, _ in faults("# %%\nx = 1\n")] == [1]


def test_sound_cells_have_no_fault():
    cells = (
        "# %% [markdown]\n# Text.\n\n# %%\nw = torch.load(path, weights_only=True)  # 5 % of it\n"
        "# %%\nimport matplotlib.pyplot as plt\nfrom workbench import device\n"
        "from workbench import images, plots\n"
        "# %%\ndef half(n):\n    assert n % 2 == 0, 'n must be even'\n    return n // 2\n\n\n"
        "n = 4 if PROFILE == 'sample' else 8\nclaim(half(n) < n, 'a half is less')\n"
        "if PROFILE == 'full':\n    print(n)\n"
        "a, b = b, a + b\nleast, most = ends(n)\n"
    )
    assert list(faults(HEADER + cells)) == []


def test_the_notebooks_have_no_fault(capsys):
    assert main(str(NOTEBOOKS)) == 0, capsys.readouterr().out
