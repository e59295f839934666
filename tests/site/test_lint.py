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
        ("x = 1\n# %%\n", 9, "before the first cell marker"),
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
    )
    assert list(faults(HEADER + cells)) == []


def test_the_notebooks_have_no_fault(capsys):
    assert main(str(NOTEBOOKS)) == 0, capsys.readouterr().out
