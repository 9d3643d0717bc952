"""The page to play with is what its parts make."""

import runpy
from pathlib import Path

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "playground.py"))


def test_the_page_is_up_to_date():
    assert TOOL["PAGE"].read_text(encoding="utf-8") == TOOL["page"](), (
        "docs/playground/index.html is out of date: run `python tools/playground.py`"
    )


def test_check_says_when_it_is_not(tmp_path, capsys, monkeypatch):
    main = TOOL["main"]
    monkeypatch.setitem(main.__globals__, "PAGE", tmp_path / "playground" / "index.html")
    assert main(["--check"]) == 1
    assert "run `python tools/playground.py`" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert main(["--chek"]) == 2
    assert "--chek" in capsys.readouterr().err


def test_all_parts_are_used():
    parts = {p.stem for p in TOOL["PARTS"].glob("*.js")}
    assert parts == set(TOOL["OWN"])
