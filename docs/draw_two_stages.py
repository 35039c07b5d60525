# SPDX-License-Identifier: Apache-2.0
"""Draws docs/two_stages.svg, the picture in the README.   python docs/draw_two_stages.py"""

from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch


IDS, TEXT, BOTH, PLAIN = "#d9e8f6", "#fbe5d0", "#e3efda", "#f4f4f4"


def box(axes, x, y, width, height, text, color=PLAIN, **options):
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.6", facecolor=color, edgecolor="#666666"
        )
    )
    options = {"ha": "center", "va": "center", "fontsize": 9.5, **options}
    axes.text(x + width / 2, y + height / 2, text, **options)


def arrow(axes, start, end, text="", offset=(0, 1), color="#555555"):
    axes.annotate(
        "", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0}
    )
    if text:
        axes.text(
            (start[0] + end[0]) / 2 + offset[0],
            (start[1] + end[1]) / 2 + offset[1],
            text,
            fontsize=8.5,
            color=color,
            ha="center",
        )


def main() -> None:
    rcParams["svg.hashsalt"] = "flip"
    figure = Figure(figsize=(10.5, 4.9), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 105), ylim=(0, 50))
    axes.axis("off")

    axes.text(0, 47.5, "stage 1   one pre-training", fontsize=11, weight="bold")
    axes.text(74, 47.5, "stage 2   three click models", fontsize=11, weight="bold")

    box(axes, 0, 18, 13, 12, "a row\n\nuser U1077\nplace 135085\ncuisine Mexican\n...", fontsize=8.5)
    arrow(axes, (13, 27), (18, 36))
    arrow(axes, (13, 21), (18, 12))

    box(axes, 18, 33.5, 17, 8.5, "ids\n17   204   [mask]   311", IDS)
    box(axes, 18, 6.5, 17, 8.5, "text\nuser id is [MASK].\nplace id is 135085. ...", TEXT, fontsize=8.5)
    arrow(axes, (35, 37.7), (40, 37.7))
    arrow(axes, (35, 10.7), (40, 10.7))
    box(axes, 40, 33.5, 10, 8.5, "ID tower\n(DCNv2, ...)", IDS)
    box(axes, 40, 6.5, 10, 8.5, "language\nmodel", TEXT)

    box(axes, 53, 36.2, 17.3, 5.8, "MTM\nwhich id was hidden?", BOTH, fontsize=8.5)
    box(axes, 53, 22, 17.3, 5.8, "ICL\nwhich text is this row's?", BOTH, fontsize=8.5)
    box(axes, 53, 6.5, 17.3, 5.8, "MLM\nwhich words were hidden?", BOTH, fontsize=8.5)
    arrow(axes, (50, 39), (53, 39))
    arrow(axes, (50, 9.4), (53, 9.4))
    arrow(axes, (48.5, 33.5), (55.5, 27.8))
    arrow(axes, (48.5, 15), (55.5, 22))
    # each side recovers its own with the help of the other
    arrow(axes, (45, 15), (59, 36.2), color="#b5651d")
    arrow(axes, (45, 33.5), (59, 12.3), color="#2b6ca3")
    axes.text(42.2, 24.3, "each view\nhelps the other", fontsize=8.5, ha="center", va="center", color="#555555")

    axes.plot([71.5, 71.5], [2, 46], color="#bbbbbb", linestyle=(0, (4, 3)))
    box(
        axes,
        75,
        35.5,
        29,
        7,
        'FLIP_ID     mode="tabular"\nids alone, the cost of a plain CTR model',
        IDS,
        fontsize=8.5,
    )
    box(axes, 75, 21.5, 29, 7, 'FLIP     mode="joint"\nα · logit of ids + (1 − α) · logit of text', BOTH, fontsize=8.5)
    box(axes, 75, 6, 29, 7, 'FLIP_PLM     mode="text"\nthe sentence alone', TEXT, fontsize=8.5)
    for y in (39, 25, 9.5):
        arrow(axes, (70, y), (75, y))
    axes.text(89.5, 1.5, "one checkpoint, one from_pretrained each", fontsize=8.5, ha="center", color="#555555")

    figure.savefig(Path(__file__).parent / "two_stages.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
