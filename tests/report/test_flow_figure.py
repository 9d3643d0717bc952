import math

import numpy as np
import pytest
from flow_factories import five_flows, made_flow

from bptt._src.report.flow import draw_flow
from bptt.errors import ConfigError


def test_a_heat_map_shows_the_norms_and_nothing_above_the_diagonal():
    flow = made_flow(seed=3)
    heat, _, curves = draw_flow(flow).axes
    shown = heat.images[0].get_array()
    norms = np.array(flow["states"][0]["norms"], np.float64)
    largest = np.nanmax(norms)
    assert shown.mask.tolist() == np.isnan(norms).tolist()
    assert shown[20, 17] == pytest.approx(norms[20, 17] / largest)
    assert heat.images[0].norm.vmin == pytest.approx(1e-4)
    assert curves.get_yscale() == "log"


def test_the_curves_are_the_mean_the_fit_and_the_bound():
    flow = made_flow(beta=0.7, bound=0.9)
    figure = draw_flow(flow)
    curves = figure.axes[-1]
    lines = {line.get_label(): line for line in curves.lines}
    mean = flow["by_lag"]["mean"]
    drawn = next(line for label, line in lines.items() if label.startswith("tanh"))
    assert drawn.get_ydata().tolist() == pytest.approx(mean)
    x, y = lines["fit, β a step"].get_data()
    assert (y[1] / y[0]) == pytest.approx(0.7 ** (x[1] - x[0]))
    bound = next(line for label, line in lines.items() if label.startswith("bound")).get_ydata()
    assert bound.tolist() == pytest.approx([mean[0] * 0.9**k for k in range(len(mean))])
    assert figure.get_suptitle().startswith("tanh: The gradient is vanishing")


def test_one_flow_has_its_top_layers_states_several_have_one_each():
    one = draw_flow(made_flow("lstm", cells=True, layers=2))
    assert [axes.get_title() for axes in one.axes] == ["hidden state", "cell state", "", ""]
    assert not any("bound" in str(line.get_label()) for line in one.axes[-1].lines)  # two layers
    several = draw_flow(*five_flows())
    titles = [axes.get_title() for axes in several.axes if axes.get_title()]
    assert titles == ["tanh", "sigmoid", "relu", "gru", "lstm"]
    assert several.get_suptitle().split("\n") == [
        "vanishing: tanh; sigmoid; gru",
        "exploding: relu",
        "healthy: lstm",
    ]
    labels = [text.get_text() for text in several.axes[-1].get_legend().get_texts()]
    assert [label.split("\n")[0] for label in labels] == titles


def test_many_flows_are_told_apart():
    figure = draw_flow(*[made_flow(f"network {n}", layers=2) for n in range(10)])
    curves = figure.axes[-1].lines
    assert len({(line.get_color(), str(line._dash_pattern)) for line in curves}) == 10
    labels = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert labels[9] == "network 9: horizon 19, β 0.8"


def test_the_plot_ends_where_the_curves_leave_it():
    assert draw_flow(made_flow(beta=0.9)).axes[-1].get_xlim() == (0, 47)
    first, last = draw_flow(made_flow(beta=0.1)).axes[-1].get_xlim()
    assert first == 0
    assert 8 <= last <= 12


def test_what_is_not_there_is_not_drawn():
    bare = made_flow("a$b$", attribution=False, times=[5, 40], lags=10)
    bare.update(decay=None, dynamics=None, horizon=None, tokens=None, targets=None)
    figure = draw_flow(bare)
    figure.canvas.draw()
    assert [line.get_label() for line in figure.axes[-1].lines] == [r"a\$b\$" + "\nno decay fitted"]
    ticks = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert {"5", "40"} <= set(ticks)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, None])
def test_matrices_without_a_number_are_drawn_without_a_warning(value):
    flow = made_flow()
    for state in flow["states"]:
        state["norms"] = [[value] * flow["steps"] for _ in flow["times"]]
    for key in ("mean", "low", "high"):
        flow["by_lag"][key] = [value] * len(flow["by_lag"]["lag"])
    draw_flow(flow).canvas.draw()


def test_what_is_no_flow_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        draw_flow()
    with pytest.raises(ConfigError, match="its format is 'other'"):
        draw_flow({"format": "other"})
