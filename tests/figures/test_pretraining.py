"""What the claim about pretraining needs."""

from deepjax.figures import pretraining as experiment


def made_up(random, autoencoders, machines):
    names = (experiment.RANDOM, experiment.AUTOENCODERS, experiment.MACHINES)
    errors = dict(zip(names, ((random, 0.9), (0.0, autoencoders), (0.0, machines))))
    return experiment.Numbers((20, 40), dict.fromkeys(names, 5 * ((2.0, 1.0),)), errors)


def test_the_worst_network_decides():
    assert experiment.claim(made_up(0.85, 0.05, 0.3)).holds
    assert not experiment.claim(made_up(0.5, 0.05, 0.3)).holds
    assert not experiment.claim(made_up(0.85, 0.2, 0.3)).holds
    assert not experiment.claim(made_up(0.85, 0.05, 0.6)).holds


def test_every_network_is_drawn_and_each_initialization_has_one_label_and_color():
    axes = experiment.draw(made_up(0.85, 0.05, 0.3)).axes[0]
    assert len(axes.lines) == 15
    assert len({line.get_color() for line in axes.lines}) == 3
    assert len(axes.get_legend_handles_labels()[1]) == 3
