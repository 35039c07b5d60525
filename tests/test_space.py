# SPDX-License-Identifier: Apache-2.0
"""The page of examples/space in a browser: fill in, click, see numbers and a picture; wrong input is a sentence."""

import csv
import re
import runpy
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, make_table, rows_of, serving, tabular_model

from flip_hf import ClickThroughRatePipeline, FlipForCTR, FlipForPreTraining


SPACE = ROOT / "examples" / "space"
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --window-size=1400,1000"


def test_a_space_is_told_what_to_run_and_what_to_install():
    _, head, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    said = yaml.safe_load(head)
    assert said["sdk"] == "gradio" and (SPACE / said["app_file"]).is_file()
    pins = {line for line in (SPACE / "requirements.txt").read_text().split("\n") if "==" in line}
    assert pins <= set((ROOT / "constraints.txt").read_text().split("\n"))


@pytest.fixture()
def models(text_model_dir, processor, tmp_path):
    """A folder as the quickstart writes it -> pipelines by title."""
    torch.manual_seed(0)
    make = {"text_model": text_model_dir, "processor": processor, "num_hidden_layers": 1}
    made = {
        "pretrained": FlipForPreTraining.from_text_pretrained(make.pop("text_model"), **make),
        "flip": FlipForCTR.from_text_pretrained(text_model_dir, mode="joint", **make),
        "flip_id": tabular_model(processor, tabular_initializer_range=0.3),
        "flip_plm": FlipForCTR.from_text_pretrained(text_model_dir, mode="text", **make),
    }
    for name, model in made.items():
        model.save_pretrained(tmp_path / "models" / name)
        processor.save_pretrained(tmp_path / "models" / name)
    reads = {"flip_id": "ids", "flip_plm": "text", "flip": "both"}
    return {
        f"{name}, reads {what}": ClickThroughRatePipeline(made[name].eval(), processor, device="cpu")
        for name, what in reads.items()
    }


def test_a_visitor_opens_only_what_the_owner_names_and_sees_no_insides(models, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    pd = pytest.importorskip("pandas")
    monkeypatch.setenv("FLIP_MODEL", str(tmp_path / "models" / "flip_id"))
    app = runpy.run_path(str(SPACE / "app.py"))
    names, row = str(tmp_path / "models" / "flip_id"), {name: values[0] for name, values in make_table(1).items()}
    assert "1 models, 1 rows" in app["open_names"](names, None)[0]
    for other in (str(tmp_path / "models"), "user/private", ""):
        for said, *nothing in (app["open_names"](other, None), app["score_row"](other, row)):
            assert f"this page opens {names} alone" in said and not any(nothing)
        assert f"this page opens {names} alone" in app["draw_row"](other, row)
    (box,) = (one for one in app["build"](names).blocks.values() if getattr(one, "elem_id", None) == "model")
    assert not box.interactive
    said, shown, kept = app["score_table"](names, pd.DataFrame([row] * 2000))
    assert said == "" and len(shown) == 2000 and shown is kept
    said, *nothing = app["score_table"](names, pd.DataFrame([row] * 2001))
    assert "the table has 2,001 rows, and this page takes 2,000" in said and not any(nothing)
    file = app["as_csv"](kept)
    path = Path(next(file))
    assert pd.read_csv(path, dtype=str)["user_id"].tolist() == [row["user_id"]] * 2000
    assert not list(file) and not path.parent.exists()  # gradio has its copy by then
    said, _ = app["rank_items"](names, row, pd.DataFrame([row]), ["user_id", "gender"], "no such model", 3)
    assert "This should not happen; the log" in said and "no such model" not in said
    (tmp_path / "new.csv").write_text("user_id,gender,item_id,title,genre\nNA,null,1,None,nan\n")
    table = app["open_names"](names, str(tmp_path / "new.csv"))[2]  # values as any other
    assert table.iloc[0].tolist()[:2] == ["NA", "null"]
    lists = pd.DataFrame({"genre": [["Drama", "War"], ["Action, Thriller"]]})
    assert list(map(app["elements"], app["as_text"](lists)["genre"])) == lists["genre"].tolist()
    assert app["rounded"](1.23456e-7) == 1.235e-7


@pytest.fixture()
def page(models, tmp_path):
    """A browser that has opened the page, and another for what is asked of it."""
    pytest.importorskip("gradio")
    webdriver = pytest.importorskip("selenium.webdriver")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path / 'browser'}"):
        options.add_argument(flag)
    options.binary_location = paths[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    settings = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
    settings["GRADIO_ANALYTICS_ENABLED"] = "False"
    app = serving(tmp_path / "log", "space/app.py", "--model", tmp_path / "models", **settings)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    with app as (_, url), browser:
        browser.get(url)
        yield browser
        assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_fill_in_click_and_see(page, models, tmp_path):
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def find(selector):
        return page.find_element("css selector", selector)

    def wait_for(condition, what):
        return WebDriverWait(page, 60, ignored_exceptions=[Exception]).until(lambda _: condition(), what)

    def text_of(selector):
        return find(selector).text

    def shows(selector, *parts):
        wait_for(lambda: all(part in text_of(selector) for part in parts), f"{selector}: {parts}")

    def click(selector):
        wait_for(lambda: find(selector).click() is None, selector)

    def tab(name):
        tabs = page.find_elements("css selector", "button[role=tab]")
        wait_for(lambda: next(one for one in tabs if one.text == name).click() is None, name)

    def type_into(selector, text):
        box = find(selector)
        box.click()
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(text, Keys.ENTER)

    # one row: the example, then a value of one's own
    shows("#said", "3 models, 1 rows that come with it")
    names = ["user_id", "gender", "item_id", "title", "genre"]
    wait_for(lambda: len(page.find_elements("css selector", "#fields input")) == len(names), "a form")
    values = [box.get_attribute("value") for box in page.find_elements("css selector", "#fields input")]
    row = dict(zip(names, values, strict=True))
    for title in ("a new title", None):
        if title is not None:
            row["title"] = title
            type_into("#fields input[aria-label=title]", title)
        click("#score")
        for name, scorer in models.items():
            shows("#probabilities", name, f"{scorer(row)['probability']:.1%}")
        for reason in models["flip, reads both"](row, return_reasons=2)["reasons"]:
            shows("#reasons", reason["field"], f"{reason['effect']:+.2f}")
    picture = wait_for(lambda: find("#picture img"), "a picture")
    assert wait_for(lambda: page.execute_script("return arguments[0].naturalWidth", picture), "drawn") > 800

    # what is wrong is said: a name, a table without a column, a ranking without items
    type_into("#model textarea, #model input", "nowhere")
    shows("#said", "nowhere is not there: name a folder")
    type_into("#model textarea, #model input", str(tmp_path / "models"))
    shows("#said", "3 models")
    rows = rows_of(make_table(30), "label")
    for left_out, said in (("genre", "the table has no column genre; it has user_id"), ("", "30 rows of rows.csv")):
        with open(tmp_path / "rows.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, [name for name in names if name != left_out], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        find("#file input[type=file]").send_keys(str(tmp_path / "rows.csv"))
        shows("#said", said)
        if left_out:
            click("#file button[aria-label=Clear], #file button[aria-label='Remove file'], #file .icon-button")
            shows("#said", "1 rows that come with it")

    tab("Table")
    click("#score_rows")
    expected = models["flip_id, reads ids"](rows[:20])
    shows("#scored", *(f"{one['probability']:.4f}".rstrip("0") for one in expected[:3]))
    with urllib.request.urlopen(wait_for(lambda: find("#download a[href]"), "a file").get_attribute("href")) as file:
        scored = list(csv.DictReader(file.read().decode().splitlines()))
    assert [float(row["flip_id, reads ids"]) for row in scored] == [round(one["probability"], 4) for one in expected]

    tab("Ranking")
    click("#rank")
    of_user = page.execute_script("return [...document.querySelectorAll('#of_user input:checked')].map(x => x.name)")
    assert "user_id" in of_user and "item_id" not in of_user
    items = [{name: one[name] for name in names if name not in of_user} for one in rows]
    user = {name: rows[0][name] for name in of_user}
    best = models["flip, reads both"].rank(user, items, 1)
    shows("#ranked", f"{best.probabilities[0]:.4f}".rstrip("0"), items[best.indices[0]]["title"])
    for name in of_user:
        wait_for(lambda name=name: find(f"#of_user input[name='{name}']").click() is None, name)
    click("#rank")
    shows("#place", "a ranking needs columns of the user and columns of the items")

    # nothing came from elsewhere, and nothing is broken
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    ours = [url for url in loaded if re.match(r"(http|ws)://127\.0\.0\.1|data:|blob:", url)]
    assert len(loaded) > 10 and ours == loaded
    assert not [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert np.isfinite(best.probabilities).all()
