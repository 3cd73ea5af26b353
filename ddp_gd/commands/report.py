"""`python -m ddp_gd.report`: one run's page, or several runs compared."""

from pathlib import Path

from ddp_gd.comm.environment import launch
from ddp_gd.commands.config import ReportConfig
from ddp_gd.commands.result_folder import numbered
from ddp_gd.errors import ConfigError
from ddp_gd.files import require_new_file
from ddp_gd.reporting.page import comparison, report
from ddp_gd.reporting.records import read_run


def run(config: ReportConfig) -> None:
    """Draw the page that the command line asks for.

    Raises:
        ConfigError, DataError: a record is missing or damaged, or the page can't be written.
    """
    if launch().rank > 0:
        return
    runs = [read_run(folder) for folder in config.runs]
    if config.out is not None:
        require_new_file("out", config.out)
        out = Path(config.out)
    else:
        out = runs[0].folder / "report.html" if len(runs) == 1 else _free(Path("comparison.html"))
    page = report(runs[0]) if len(runs) == 1 else comparison(runs)
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out} can't be written ({error}); give another --out.") from error
    print(f"report  {out}")


def _free(path: Path) -> Path:
    return next(free for free in numbered(path) if not free.exists())
