"""report.html and `python -m ddp_gd.report`."""

import csv
import html.parser
import json
import shutil
import subprocess
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf
from jobs import run_job
from run_command import run_command

from ddp_gd.batching.plan import Plan
from ddp_gd.job import runtime
from ddp_gd.training.callbacks import Hooks

HOSTILE = "<script>alert(1)</script>\"'&$_<img src=x onerror=alert(2)>日本"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training with two workers: 4 epochs, 7 rows in the last step."""
    folder = tmp_path_factory.mktemp("trained")
    out = folder / "run"
    arguments = ["--epochs", "4", "--batch-size", "30", "--seed", "1", "--out", str(out)]
    timeline = {"HOROVOD_TIMELINE": str(folder / "timeline.json")}
    done = run_job(
        2, ["-m", "ddp_gd.train", *arguments, "--tensorboard"], env=timeline, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    """A working folder with a copy of that training, named `a run`."""
    shutil.copytree(trained, tmp_path / "a run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(capsys):
    """Runs the command line in this process: the exit status, and what it printed."""

    def run(*arguments):
        status = run_command("report", *arguments)
        captured = capsys.readouterr()
        return SimpleNamespace(status=status, out=captured.out, err=captured.err)

    return run


class Page(html.parser.HTMLParser):
    """A page's elements, the cells of its tables, and its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.rows, self.text = [], [], [], ""
        self._in_cell = False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data.strip()

    def row(self, name):
        """The other cells of the row that begins with `name`."""
        return next(row[1:] for row in self.rows if row[0] == name)


def times(path):
    """The rows of times.csv."""
    with (path / "times.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.mark.jobs
def test_times_add_up(trained):
    """Every worker's parts of an epoch are its seconds, none is negative, and workers agree."""
    rows = times(trained)
    assert [(row["epoch"], row["worker"]) for row in rows] == [
        (epoch, worker) for worker in (0, 1) for epoch in (1, 2, 3, 4)
    ]
    for row in rows:
        parts = [row[name] for name in ("compute", "reduction", "data", "validation", "other")]
        assert sum(parts) == pytest.approx(row["seconds"])
        assert min(parts) >= 0
        assert row["reduction"] > 0
        assert row["learning_rate"] == 0.01
    for ours, theirs in zip(rows[:4], rows[4:], strict=True):
        # They begin and end an epoch together, or the next one waits.
        assert ours["seconds"] == pytest.approx(theirs["seconds"], rel=0.3, abs=0.3)


@pytest.mark.jobs
def test_page_says_what_was_done(trained):
    """report.html has the setting, the shares of a step, the result, and a picture of each."""
    page = Page(trained / "report.html")
    record = json.loads((trained / "config.json").read_text())
    assert record["fingerprint"] in page.text
    assert record["command"] in page.text
    assert "horovodrun -np 2" in page.text
    assert page.row("workers") == ["2 (horovod); seed 1"]
    plan = Plan(397, 30)
    last = [plan.share(13, worker, 2) for worker in (0, 1)]
    assert page.row("0") == ["1 to 15 (15)", f"1 to {last[0].stop} ({last[0].stop})"]
    assert page.row("validation loss") == [f"{record['final']['validation']['loss']:.6g}"]
    assert page.row("validation R2") == [f"{record['final']['validation']['R2']:.6g}"]
    assert 0 < record["final"]["training"]["R2"] < 1
    assert page.text.index("Result") < page.text.index("Curves") < page.text.index("Setting")
    assert page.tags.count("img") == 4  # loss, learning rate, shares, times


@pytest.mark.jobs
def test_page_can_ask_for_nothing(trained):
    """The page has no script, loads nothing, and tells the browser to refuse both."""
    page = Page(trained / "report.html")
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(page.tags)
    for tag, attributes in page.attributes:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action"):
            assert tag == "img" or name not in attributes
        assert attributes.get("src", "data:").startswith("data:")
    policies = [a["content"] for _, a in page.attributes if "http-equiv" in a]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


@pytest.mark.jobs
def test_drawn_again_from_records_alone(command, folder):
    """The command draws the same page from the records, and needs nothing else of the folder."""
    run = folder / "a run"
    before = (run / "report.html").read_text()
    for name in ("report.html", "model.keras", "loss.png"):
        (run / name).unlink()
    assert command("a run").status == 0
    assert (run / "report.html").read_text() == before.replace("Training run", "Training a run")


@pytest.mark.jobs
def test_names_from_outside_are_text(command, folder):
    """Names that would be HTML, a formula, or letters without a font are shown as they stand."""
    run = folder / "a run"
    path = run / "config.json"
    record = json.loads(path.read_text())
    record["description"]["data"] = record["command"] = record["unit"] = HOSTILE
    record["config"][HOSTILE] = HOSTILE
    record["final"] = {HOSTILE: {HOSTILE: 1.0}}
    path.write_text(json.dumps(record))
    first, *rest = (run / "history.csv").read_text().splitlines()
    quoted = HOSTILE.replace('"', '""')
    lines = [f'{first},"{quoted}"', *(f"{line},0.5" for line in rest)]
    (run / "history.csv").write_text("\n".join(lines))
    renamed = folder / HOSTILE.replace("/", "-")
    run.rename(renamed)
    assert command(renamed).status == 0
    page = Page(renamed / "report.html")
    assert not {"script", "iframe"} & set(page.tags)
    assert all(a["src"].startswith("data:") for t, a in page.attributes if t == "img")
    assert page.row("data") == [HOSTILE]
    assert page.text.count(HOSTILE) > 3


@pytest.mark.jobs
def test_comparison(command, folder):
    """Several runs are told apart by what differs in them, and equal weights are seen."""
    shutil.copytree(folder / "a run", folder / "b")
    shutil.copytree(folder / "a run", folder / "c")
    path = folder / "c" / "config.json"
    record = json.loads(path.read_text())
    record["config"]["lr"], record["seed"], record["fingerprint"] = 0.5, 7, "f" * 64
    record["final"]["validation"]["loss"] = 1234.5
    path.write_text(json.dumps(record))
    done = command("a run", "b", "c")
    assert done.status == 0, done.err
    assert done.out == "report  comparison.html\n"
    page = Page(folder / "comparison.html")
    assert page.row("lr") == ["0.01", "0.01", "0.5"]
    assert page.row("seed") == ["1", "1", "7"]
    assert not [row for row in page.rows if row[0] == "optimizer"]  # the same in all
    assert page.row("validation loss")[2] == "1234.5"
    assert page.row("the same as run") == ["1", "1", "3"]
    seconds = sum(
        max(row["seconds"] for row in times(folder / "c") if row["epoch"] == epoch)
        for epoch in (1, 2, 3, 4)
    )
    assert page.row("all epochs, seconds") == [f"{seconds:.4g}"] * 3
    assert command("a run", "b").out == "report  comparison-2.html\n"
    assert command("a run", "b", "--out", "comparison.html").status == 2
    assert "All fingerprints are equal" in (folder / "comparison-2.html").read_text()


@pytest.mark.jobs
def test_training_that_had_ended(command, folder):
    """A training that was resumed after its end has a page without times, and can be compared."""
    path = folder / "a run" / "times.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert command("a run").status == 0
    page = Page(folder / "a run" / "report.html")
    assert "No epoch was trained" in page.text
    assert page.tags.count("img") == 2  # loss and shares
    assert command("a run", "a run").status == 0


DAMAGE = {
    "no folder": (None, "", "RUN a run is no folder"),
    "no history": ("history.csv", None, "has no history.csv"),
    "cut": ("config.json", '{"config": {', "config.json is damaged"),
    "list": ("config.json", "[]", "it holds a list, not an object"),
    "incomplete": ("config.json", "{}", "'command' is missing"),
    "no text": ("config.json", b"\xff\xfe", "config.json is damaged"),
    "word": ("history.csv", "epoch,loss\n1,much\n", "'much' in the column 'loss' is no number"),
    "short": ("history.csv", "epoch,loss\n1\n", "row 2 has 1 cells, not 2"),
    "empty": ("history.csv", "", "history.csv is damaged"),
    "columns": ("times.csv", "a,b\n1,2\n", "times.csv is damaged: its columns are a, b"),
}


@pytest.mark.jobs
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_records_are_refused(damage, command, folder):
    """A missing or damaged record gives one message that names it, and nothing is written."""
    name, content, message = DAMAGE[damage]
    run = folder / "a run"
    before = (run / "report.html").read_bytes()
    if name is None:
        run.rename(folder / "moved")
    elif content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    done = command("a run")
    assert done.status == 2
    assert message in done.err
    assert "Traceback" not in done.err
    if name is not None:
        assert (run / "report.html").read_bytes() == before


def test_help_and_wrong_command_lines(command, tmp_path, monkeypatch):
    """No run, or a page that is no .html file, is refused."""
    monkeypatch.chdir(tmp_path)
    assert command().status == 2
    done = command("x", "--out", "x.pdf")
    assert done.status == 2
    assert "--out x.pdf must end in .html" in " ".join(done.err.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


# What else a training may leave


@pytest.mark.jobs
def test_tensorboard_has_the_losses_of_the_epochs(trained):
    """The event files hold every epoch's loss, training and validation, in the place of its own."""
    with (trained / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    for part, column in (("train", "loss"), ("validation", "val_loss")):
        (path,) = (trained / "tensorboard" / part).iterdir()
        found = {}
        for record in tf.data.TFRecordDataset([str(path)]).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                if value.tag == "epoch_loss":
                    found[event.step] = float(tf.make_ndarray(value.tensor))
        expected = {epoch: float(row[column]) for epoch, row in enumerate(history)}
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.jobs
def test_timeline_has_every_reduction(trained):
    """Horovod's timeline is whole JSON, and both workers are seen in each step's reduction."""
    events = json.loads((trained.parent / "timeline.json").read_text())
    names = [event.get("name") for event in events]
    assert names.count("MPI_ALLREDUCE") >= 4 * 14
    # Horovod's writing thread ends with the process: the last one may lack the rest.
    assert names.count("NEGOTIATE_ALLREDUCE") - names.count("ALLREDUCE") in (0, 1)
    assert {"0", "1"} <= set(names)


@pytest.mark.parametrize(
    ("kind", "options", "every_step"),
    [
        ("TensorBoard", {}, False),
        ("TensorBoard", {"update_freq": 5}, True),
        ("TensorBoard", {"profile_batch": (2, 3)}, True),
        ("ModelCheckpoint", {}, False),
        ("ModelCheckpoint", {"save_freq": 5}, True),
        ("BackupAndRestore", {}, False),
        ("BackupAndRestore", {"save_freq": 5}, True),
    ],
)
def test_callbacks_of_epochs_let_many_steps_be_one_call(kind, options, every_step, tmp_path):
    """Keras's callbacks see every batch only where they write about batches."""
    callback = getattr(keras.callbacks, kind)(str(tmp_path / "it.keras"), **options)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    hooks = Hooks(runtime.communicator(), model, [callback], 0, 1, 1, "train")
    assert (hooks.every > 0) == every_step


# In a browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

# They stand before the page's own policy, which would refuse them.
WATCH = """<script>
window.problems = [];
for (const kind of ["error", "securitypolicyviolation", "unhandledrejection"])
  addEventListener(kind, e => problems.push(kind + " " + e.target), true);
addEventListener("load", () => {
  const images = [...document.images], root = document.documentElement;
  const inside = box => box.width > 0 && box.left >= 0 && box.right <= root.clientWidth;
  parent.postMessage(JSON.stringify({
    width: root.clientWidth,
    overflow: root.scrollWidth - root.clientWidth,
    figures: images.length,
    shown: images.filter(
      i => i.complete && i.naturalWidth > 0 && inside(i.getBoundingClientRect())).length,
    requests: performance.getEntriesByType("resource").map(e => e.name)
      .filter(name => !name.startsWith("data:")),
    problems: window.problems,
  }), "*");
});
</script>"""
# A browser's window has a least width; a frame in it is as narrow as a phone.
FRAME = """<!DOCTYPE html><script>
addEventListener("message", message => { document.body.dataset.measured = message.data; });
</script><body><iframe src="p.html" width="%d" height="900" style="border: 0"></iframe>"""


@pytest.mark.jobs
@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} on PATH")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("runs", [1, 3])
def test_in_a_browser(runs, width, command, folder):
    """A browser shows every figure, on a phone too, without overflow, error or request."""
    assert command(*["a run"] * runs, "--out", "p.html").status == 0
    page = (folder / "p.html").read_text()
    (folder / "p.html").write_text(page.replace("<meta charset", WATCH + "<meta charset", 1))
    (folder / "frame.html").write_text(FRAME % width)
    done = subprocess.run(
        [
            *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"),
            *("--window-size=1400,1000", "--virtual-time-budget=5000"),
            *("--dump-dom", (folder / "frame.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    (folder / "shown.html").write_text(done.stdout)
    attributes = Page(folder / "shown.html").attributes
    measured = json.loads(next(a["data-measured"] for tag, a in attributes if tag == "body"))
    figures = {1: 4, 3: 2}[runs]
    assert measured == {
        **{"width": width, "overflow": 0, "figures": figures, "shown": figures},
        **{"requests": [], "problems": []},
    }
