"""Names at lines, bands of seeds, and the figures of a script."""

import os
import shutil
import subprocess
import sys
from itertools import combinations

import pytest
import torch
from matplotlib import pyplot as plt

from loader import NOTEBOOKS
from workbench import plots


def test_names_at_the_ends_of_lines_lie_apart_and_near_their_lines():
    ends = {"a": 0.50, "b": 0.51, "c": 0.52, "d": 0.9}
    figure, axes = plt.subplots()
    for y in ends.values():
        axes.plot([1, 2], [0, y])
    plots.label_ends(axes, {name: (2, y) for name, y in ends.items()})
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    middles = [(box.y0 + box.y1) / 2 for box in boxes]
    wanted = figure.axes[0].transData.transform([(2, y) for y in ends.values()])[:, 1]
    assert abs(middles[1] - wanted[1]) < 3 and abs(middles[3] - wanted[3]) < 3  # pixels
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)
    plt.close(figure)


def test_names_of_lines_that_end_on_the_axis_stay_above_it():
    figure, axes = plt.subplots()
    axes.plot([1, 2], [1, 0])
    axes.set_ylim(0, None)
    plots.label_ends(axes, dict.fromkeys("abc", (2, 0.0)))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 3 and all(box.y0 >= axes.bbox.y0 for box in boxes)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    plt.close(figure)


def test_a_band_of_seeds_reaches_from_the_smallest_to_the_largest():
    _, axes = plt.subplots()
    runs = torch.tensor([[4.0, 2.0], [0.0, 1.0]])
    assert plots.seed_band(axes, range(1, 3), runs, "k", "--") == (2, 1.5)
    assert axes.lines[0].get_ydata().tolist() == [2.0, 1.5]
    corners = axes.collections[0].get_paths()[0].vertices.tolist()
    assert {(1, 0), (1, 4), (2, 1), (2, 2)} <= set(map(tuple, corners))
    plt.close()


SCRIPT = """
import matplotlib.pyplot as plt
from workbench import plots, record, table
record("accuracy", 0.5)
table([("C1", 156)], ("layer", "parameters"))
for end in range(25):  # more than matplotlib likes
    _, axes = plt.subplots()
    axes.set(xlabel="epoch")
"""


def test_a_notebook_run_as_a_script_prints_tables_and_saves_its_figures(tmp_path):
    beside = tmp_path / "notebooks"
    beside.mkdir()
    shutil.copytree(NOTEBOOKS / "workbench", beside / "workbench")
    (beside / "tiny.py").write_text(SCRIPT)
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    command = [sys.executable, "-W", "error", "notebooks/tiny.py"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[:2] == [["layer", "parameters"], ["C1", "156"]] and len(lines) == 3
    assert result.stdout.splitlines()[2].startswith("25 figures are saved as ")
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert figures == sorted(f"tiny-{number}.svg" for number in range(1, 26))
    assert ">epoch<" in (tmp_path / "figures" / "tiny-25.svg").read_text()


@pytest.mark.parametrize(
    "imports", ["from workbench import record\n", "from workbench import plots, record\n"]
)
def test_a_script_without_figures_prints_nothing_and_leaves_no_folder(tmp_path, imports):
    shutil.copytree(NOTEBOOKS / "workbench", tmp_path / "workbench")
    (tmp_path / "tiny.py").write_text(f"{imports}record('a', 1)\n")
    command = [sys.executable, "tiny.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not (tmp_path / "figures").exists()
