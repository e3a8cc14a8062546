import io

import pytest

from edgekd.progress import Bars, Lines, Silent, default_progress, format_figures


def test_figures_are_short():
    assert format_figures({"loss": 0.123456, "epoch": "3/30"}) == "loss 0.123  epoch 3/30"


def test_lines_tell_the_start_of_the_news_and_the_end(capsys):
    lines = Lines(every=0)
    lines.say("teacher")
    with lines.task("student", total=4) as task:
        task.advance(2, loss=0.5)
    errors = capsys.readouterr().err
    assert "teacher" in errors
    assert "50%" in errors
    assert "loss 0.5" in errors


def test_bars_show_share_and_figures_and_survive_markup(monkeypatch):
    from rich.console import Console

    bars = Bars()
    bars.console = Console(file=io.StringIO(), force_terminal=True, width=160)
    bars.say("[bold]not markup")
    with bars.task("stu[dent", total=2) as task:
        task.advance(1, loss=0.25)
        task.advance(1)
    text = bars.console.file.getvalue()
    assert "[bold]not markup" in text
    assert "stu[dent" in text
    assert "loss 0.25" in text
    assert "100%" in text


@pytest.mark.parametrize(("quiet", "kind"), [(True, Silent), (False, Lines)])
def test_the_default_fits_where_the_output_goes(quiet, kind):
    assert isinstance(default_progress(quiet), kind)


def test_silence_is_silent(capsys):
    silent = Silent()
    silent.say("x")
    with silent.task("x") as task:
        task.advance(1, loss=1.0)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
