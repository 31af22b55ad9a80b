"""No password of a URL is shown or recorded: a canary is looked for in all that a sweep prints, leaves and sends."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from pathlib import Path

import pytest
from support.islands import folder_of, run, write_data, write_space
from support.mlflow_stand_in import MlflowStandIn
from typer.testing import CliRunner, Result

from deftx.errors import ConfigError, DataError, reason
from deftx.passwords import to_type, without_password
from orchestrator.record.sweep import Failure, SweepInfo
from orchestrator.run.logs import diverted
from orchestrator.tracking.__main__ import app
from orchestrator.tracking.client import check_tracking_uri

CANARY = "CANARY789"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:CANARY@host:5000", "http://me:***@host:5000"),
        ("http://me:CAN%40%2FARY@host:5000/path?q=1#f", "http://me:***@host:5000/path?q=1#f"),
        ("http://me:CAN@ARY@host/at@sign", "http://me:***@host/at@sign"),
        ("http://me:CAN/ARY@host", "http://me:***@host"),
        ("http://me:CAN ARY@host", "http://me:***@host"),
        ("http://me:1234@host", "http://me:***@host"),
        ("postgresql+psycopg2://u:CAN?ARY@host:5432/db", "postgresql+psycopg2://u:***@host:5432/db"),
        ("mysql://u:CANARY@h/db?ssl_key=/k.pem&password=CANARY", "mysql://u:***@h/db?ssl_key=/k.pem&password=***"),
        ("redis://:CANARY@host", "redis://:***@host"),
        ("s3://key:CANARY@bucket/a", "s3://key:***@bucket/a"),
        ("simplecache::https://u:CANARY@host/x", "simplecache::https://u:***@host/x"),
        ("https://h/x?access_token=CANARY&y=1", "https://h/x?access_token=***&y=1"),
        ("https://h/x?X-Amz-Signature=CANARY", "https://h/x?X-Amz-Signature=***"),
        ("mysql://h/db?pass=CANARY&passphrase=CANARY", "mysql://h/db?pass=***&passphrase=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3DCANARY", "mssql+pyodbc:///?odbc_connect=***"),
        ("jdbc:sqlserver://h;user=me;password=CANARY", "jdbc:sqlserver://h;user=me;password=***"),
        ("https://h/x?a=?b&auth=CANARY#access_token=CANARY", "https://h/x?a=?b&auth=***#access_token=***"),
        ("--tracking-uri=http://me:CANARY@host", "--tracking-uri=http://me:***@host"),
        (
            "failed at http://me:CANARY@h/a, then at 'http://me:CANARY@h'",
            "failed at http://me:***@h/a, then at 'http://me:***@h'",
        ),
    ],
)
def test_a_password_is_hidden_and_all_else_stays(uri: str, shown: str) -> None:
    assert without_password(uri) == shown
    assert without_password(shown) == shown


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////home/me/a b/mlflow.db", "http://127.0.0.1:5000", "http://host:5000/@me", "http://me@host:5000",
        "https://host:443?tokenizer=x", "databricks", "databricks://profile", "s3://bucket/a:b@c", "C:\\me:x@y",
        "at http://host:5000 ask me@example.org", "rank_l=[100,90%]",
    ],
)  # fmt: skip
def test_what_holds_no_password_is_left_as_it_is(uri: str) -> None:
    assert without_password(uri) == uri
    assert to_type(f"mlflow ui --backend-store-uri {uri}") == f"mlflow ui --backend-store-uri {uri}"


@pytest.mark.parametrize("piece", ["?", "?token", "&a", "://a:b", "://", "a"])
def test_a_long_line_without_spaces_is_looked_through_in_time(piece: str) -> None:
    """Such as text in a broken encoding, in a log: by the square of its length this would be minutes."""
    line = piece * 40_000
    started = time.process_time()
    assert without_password(line) == line
    assert time.process_time() - started < 10


def test_a_command_to_type_says_that_its_password_was_left_out() -> None:
    assert to_type("mlflow ui --backend-store-uri postgresql://u:CANARY@h/db") == (
        "mlflow ui --backend-store-uri postgresql://u:***@h/db  (with the password in place of ***)"
    )


def test_errors_failures_and_logs_hide_it() -> None:
    url = f"https://me:{CANARY}@host/data.csv"
    assert str(DataError(f"{url}: no such file")) == "https://me:***@host/data.csv: no such file"
    assert reason(OSError(f"{url}\nmore")) == "https://me:***@host/data.csv"
    failure = Failure(address="a", label="b", final=True, reason=url, trace=f"Traceback\n{url}", log=url)
    assert CANARY not in failure.model_dump_json()
    log = io.StringIO()
    with diverted(log):  # type: ignore[arg-type]
        print("printed", url)
        logging.getLogger("mlflow").warning("logged %s", url)
    assert log.getvalue().count("https://me:***@host/data.csv") == 2
    assert CANARY not in log.getvalue()
    with pytest.raises(ConfigError) as error:
        check_tracking_uri(f"ftp://me:{CANARY}@host")
    assert "ftp://me:***@host" in str(error.value) and CANARY not in str(error.value)
    with pytest.raises(ConfigError, match="tracking URI 'host:5000': MLflow keeps"):
        check_tracking_uri(f"me:{CANARY}@host:5000")


def test_a_record_of_before_hides_it_when_it_is_read() -> None:
    info = {
        "name": "x", "benchmark": "x", "backbone": "x", "seed": 0, "space": {}, "packages": {}, "git_commit": None,
        "created": "", "command": ["sweep", "--tracking-uri", f"http://me:{CANARY}@host"],
    }  # fmt: skip
    assert SweepInfo.model_validate_json(json.dumps(info)).command[-1] == "http://me:***@host"


def small_sweep(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    """A sweep of one combination, as the command records it."""
    monkeypatch.setattr(sys, "argv", ["sweep.py", "tiny.yaml", "--tracking-uri", uri, f"--tracking-uri={uri}"])
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # a dead port is dead at once
    small = {"targets": ["ila"], "baselines": [], "rank_l": [2], "rank_t": [2], "source": {}}
    space = write_space(tmp_path / "tiny.yaml", **small)
    return run(space, write_data(tmp_path / "data"), tmp_path / "results", "--tracking-uri", uri)


def mirror_again(tmp_path: Path, uri: str) -> Result:
    return CliRunner().invoke(app, [str(tmp_path / "results"), "--tracking-uri", uri])


def with_canary(*folders: Path) -> list[str]:
    """The files that hold it, of as many as there are."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    return [str(path) for path in files if CANARY.encode() in path.read_bytes()]


def test_a_sweep_with_a_dead_tracker_leaves_and_prints_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://me:{CANARY}@127.0.0.1:9"
    result = small_sweep(tmp_path, uri, monkeypatch)
    assert result.exit_code == 0
    assert with_canary(tmp_path / "results") == []
    assert CANARY not in result.output
    warning = "warning: MLflow at http://me:***@127.0.0.1:9 did not take an update (API request to http://me:***@127"
    assert warning in result.output
    again = f"python -m orchestrator.tracking {tmp_path}/results/sweeps/tiny --tracking-uri http://me:***@127.0.0.1:9"
    assert f"is mirrored once it answers, by `{again}`  (with the password in place of ***)\n" in result.output
    assert "browse: http://me:***@127.0.0.1:9  (with the password in place of ***)\n" in result.output
    report = Path(folder_of(tmp_path / "results", "tiny").path, "report.md").read_text()
    assert "--tracking-uri 'http://me:***@127.0.0.1:9' '--tracking-uri=http://me:***@127.0.0.1:9'" in report
    mirrored = mirror_again(tmp_path, uri)
    assert mirrored.exit_code == 1
    assert mirrored.output.startswith("error: API request to http://me:***@127.0.0.1:9/api/")
    assert CANARY not in mirrored.output


def test_a_tracker_is_told_the_password_by_its_header_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = MlflowStandIn(tmp_path / "artifacts", "me", CANARY)
    with mlflow.serving() as port:
        uri = f"http://me:{CANARY}@127.0.0.1:{port}"
        result = small_sweep(tmp_path, uri, monkeypatch)
        mirrored = mirror_again(tmp_path, uri)
    assert (result.exit_code, mirrored.exit_code) == (0, 0)
    assert mirrored.output == f"tiny: {len(mlflow.runs)} runs in http://me:***@127.0.0.1:{port}\n"
    assert "warning: MLflow" not in result.output
    assert CANARY not in result.output + mirrored.output
    assert with_canary(tmp_path / "results", tmp_path / "artifacts") == []
    assert {run["info"]["status"] for run in mlflow.runs.values()} == {"FINISHED"}
    assert any("mlflow.source.name" in sent and "http://me:***@127.0.0.1" in sent for sent in mlflow.sent)
    assert [sent for sent in mlflow.sent if CANARY in sent] == []
    assert {path.name for path in (tmp_path / "artifacts").rglob("*")} >= {"sweep.json", "report.md", "sft.json"}
