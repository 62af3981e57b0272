import matplotlib.pyplot as plt
import torch

from mmlib import plots
from mmlib.stats import Interval


def test_interval_bars_are_solid_whatever_the_style_cycles_through():
    with plt.rc_context({"axes.prop_cycle": plt.cycler(linestyle=["--", ":", "-."])}):
        fig, ax = plt.subplots()
        plots.interval(ax, {name: Interval(*torch.tensor([0.0, -1.0, 2.0])) for name in "abc"})
    bars = [line for line in ax.lines if len(line.get_xdata()) == 2]
    assert [(line.get_linestyle(), list(line.get_xdata())) for line in bars] == [("-", [-1.0, 2.0])] * 3
    plt.close(fig)
