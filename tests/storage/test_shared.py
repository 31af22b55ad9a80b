"""What processes and hosts that share a storage see of each other, on every kind of storage (see `conftest`)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import s3 as faults
from support.facts import metrics_of
from support.nfs import Nfs
from support.s3 import S3, Fault

from deftx.config import TextSettings
from deftx.errors import StoreError, refusal
from deftx.sources.files import FileSource
from deftx.sources.published import HubFolder
from deftx.stages import reach
from deftx.stages.checkpoint import Checkpoint
from deftx.stages.claim import claim_on, claimed
from deftx.stages.files import BLOCKS
from deftx.stages.lease import Holder, Lease
from deftx.stages.manifest import MANIFEST, Manifest
from deftx.stages.objects import Objects
from deftx.stages.settings import TextStageSettings
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from orchestrator.record.gc import Removed, collect
from orchestrator.record.sweep import StageEntry, State, SweepFolder
from orchestrator.tracking.database import alone, damage

FILES = {BLOCKS: os.urandom(200_000), "model/config.json": b"{}"}
TRANSIENT = {
    "slow down": faults.SLOW_DOWN, "internal error": faults.INTERNAL, "reset": faults.reset,
    "amid an upload": faults.cut_upload, "the answer lost": faults.lost_answer,
}  # fmt: skip


def make_stage(language: str = "ace") -> Stage:
    source, backbone = FileSource(sha256="0" * 64, url="ace.txt"), HubFolder(repo="tiny", commit="1" * 40)
    settings = TextStageSettings(language=language, source=source, text=TextSettings(), backbone=backbone, seed=0)
    return Stage("text", settings)


STAGE = make_stage()


def publish(store: Store, stage: Stage = STAGE) -> Manifest:
    attempt = store.attempt(stage.address)
    for name, content in FILES.items():
        (attempt.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (attempt.folder / name).write_bytes(content)
    return attempt.publish(stage, metrics=metrics_of(stage), seconds=1.0)


def read_back(store: Store) -> dict[str, bytes]:
    return {name: store.fetch(STAGE.address, name).read_bytes() for name in FILES}


# -- every kind -------------------------------------------------------------------------------------------------------


def test_of_two_holders_one_has_the_lease_and_it_leaves_nothing(store: Store) -> None:
    one, two = (Lease(store, "sweeps", "one", "lease.json", by=by) for by in ("one", "two"))
    assert (one.take(), two.take()) == (True, False)
    holder = two.holder()
    assert holder is not None and (holder.by, holder.pid, holder.gone) == ("one", os.getpid(), False)
    one.give_back()
    assert store.names("sweeps", "one") == []
    assert two.take()
    two.give_back()
    assert store.names("sweeps", "one") == []


def test_a_claim_of_a_process_that_died_is_taken_over_and_its_attempt_harms_nothing(store: Store) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = Holder(token="theirs", host=os.uname().nodename, pid=process.pid, born="1", beat=time.time())
    store.write(dead.model_dump_json().encode(), "stages", STAGE.address, "claim.json")
    store.write(b"half", "stages", STAGE.address, "attempt-dead", BLOCKS)
    Checkpoint(store, STAGE.address).save(Path(__file__))
    with claimed(store, STAGE.address, "a test", lambda: None) as claim:
        assert claim.dead == dead
        assert not store.has(STAGE.address)
        manifest = publish(store)
    assert store.names("stages", STAGE.address) == sorted(["attempt-dead", manifest.attempt, MANIFEST])
    assert read_back(store) == FILES


def test_of_many_that_create_an_object_at_once_one_does(store: Store) -> None:
    """moto looks and writes in two steps; exclusive writes to S3 are tried below, one after the other."""
    if not store.local:
        pytest.skip("no exclusive write in this process's memory")
    made: list[bytes] = []

    def create(content: bytes) -> None:
        if Objects(store.url).create(content, "a", "one.json"):
            made.append(content)

    threads = [threading.Thread(target=create, args=(str(number).encode(),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert (store.read("a", "one.json"), store.names("a")) == (made[0], ["one.json"])


def test_gc_removes_exactly_what_no_sweep_has(store: Store) -> None:
    kept, orphan = publish(store), publish(store, make_stage("ban"))
    store.write(b"12345", "stages", STAGE.address, "attempt-lost", "x.bin")
    SweepFolder(store, "one").write_state(State(stages={STAGE.address: StageEntry.of(STAGE)}))
    size = sum(map(len, FILES.values()))
    manifest = store.read("stages", orphan.address, MANIFEST)
    assert manifest is not None
    removed = Removed(stages=1, attempts=1, deltas=0, bytes=size + len(manifest) + 5)
    assert collect(store, remove=False) == removed
    assert len(store.names("stages", STAGE.address)) == 3
    assert collect(store, remove=True) == removed
    assert store.names("stages") == [STAGE.address] == list(store.addresses())
    assert store.names("stages", STAGE.address) == sorted([kept.attempt, MANIFEST])
    assert collect(store, remove=True) == Removed()
    assert read_back(store) == FILES


# -- another process --------------------------------------------------------------------------------------------------

_OTHER = """
import sys
from deftx.stages.objects import Objects
store = Objects(sys.argv[1])
for line in sys.stdin:
    method, content, *parts = line.split()
    store.remove(*parts) if method == "remove" else getattr(store, method)(content.encode(), *parts)
    print("done", flush=True)
"""


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a storage that another process can reach."""
    return request.getfixturevalue("s3").bucket() if request.param == "s3" else str(tmp_path / "storage")


def test_what_another_process_writes_replaces_or_removes_is_seen_at_once(url: str) -> None:
    store = Objects(url)
    process = subprocess.Popen(
        [sys.executable, "-c", _OTHER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def other(line: str) -> None:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"

    def seen() -> tuple[object, ...]:
        place = ("sweeps", "one")
        # the listing last: what a listing has would be asked for no more where listings are kept
        return store.exists(*place, "x"), store.size(*place, "x"), store.read(*place, "x"), store.names(*place)

    try:
        assert seen() == (False, -1, None, [])
        other("write 1 sweeps one x")
        assert seen() == (True, 1, b"1", ["x"])
        other("write 333 sweeps one x")
        other("create 22 sweeps one y")
        assert seen() == (True, 3, b"333", ["x", "y"])
        assert not store.create(b"4", "sweeps", "one", "y")
        other("remove - sweeps one x")
        assert seen() == (False, -1, None, ["y"])
        other("remove - sweeps")
        assert seen() == (False, -1, None, [])
        assert store.create(b"4", "sweeps", "one", "y")
    finally:
        process.communicate()


# -- NFS --------------------------------------------------------------------------------------------------------------


def test_what_another_host_publishes_is_seen_though_this_one_looked_before(nfs: Nfs, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "nfs"))
    assert (store.manifest(STAGE.address), store.names("stages")) == (None, [])
    with nfs.elsewhere():
        store.write(b"{}", "stages", STAGE.address, "claim.json")
    assert store.manifest(STAGE.address) is None
    assert f"{store.path('stages', STAGE.address, MANIFEST)}" in nfs.missed
    with nfs.elsewhere():
        manifest = publish(store)
    assert store.manifest(STAGE.address) == manifest
    assert store.has(STAGE.address)


def test_a_record_that_another_host_replaced_is_read_as_it_is_now(nfs: Nfs, tmp_path: Path) -> None:
    folder = SweepFolder(Store(str(tmp_path / "nfs")), "one")
    folder.write_state(State())
    assert folder.state() == State()
    with nfs.elsewhere():
        folder.write_state(State(ended=True))
    assert len(nfs.stale) == 1
    assert folder.state() == State(ended=True)
    assert not nfs.stale


def test_a_file_that_is_open_keeps_nobody_from_removing_it_or_its_folder(nfs: Nfs, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "nfs"))
    manifest = publish(store)
    with open(store.path("stages", STAGE.address, manifest.attempt, BLOCKS), "rb") as reader:
        assert collect(store, remove=True).stages == 1
        left = [path.name for path in (tmp_path / "nfs" / "stages").rglob("*") if path.is_file()]
        assert [re.fullmatch(r"\.nfs\w{16}", name) is not None for name in left] == [True]
        assert store.names("stages", STAGE.address, manifest.attempt) == []
        assert reader.read() == FILES[BLOCKS]
    assert publish(store) == store.published(STAGE.address)


def test_where_no_folder_can_be_locked_the_database_is_looked_at_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone(tmp_path):
        assert damage(tmp_path / "mlflow.db") is None


def test_what_another_keeps_in_a_folder_is_an_error_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a file was made in it amid its removal: only NFS's own names are passed over."""
    store = Objects(str(tmp_path))
    store.write(b"1", "a", "b", "c")
    rmdir = os.rmdir

    def busy(path: str, **options: int) -> None:
        if str(path) == "b":
            (tmp_path / "a" / "b" / "new").write_bytes(b"2")
        rmdir(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rmdir", busy)
    with pytest.raises(OSError, match="not empty"):
        store.remove("a")


# -- S3 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(s3: S3, tmp_path: Path) -> Store:
    return Store(s3.bucket(), cache=tmp_path / "cache")


@pytest.fixture
def impatient(bucket: Store) -> Store:
    """The bucket, to which each request is made twice at most."""
    bucket.fs = reach._impatient(bucket).fs
    return bucket


@pytest.fixture(autouse=True)
def _no_fault(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "s3" in request.fixturenames:
        assert request.getfixturevalue("s3").fault is None


def check_published_once(s3: S3, store: Store) -> None:
    """One manifest and the files that it names, bit by bit, and nothing else: no claim, checkpoint or other attempt."""
    objects = {key.removeprefix("results/stages/"): content for key, content in s3.objects(store.url).items()}
    manifest = json.loads(objects.pop(f"{STAGE.address}/{MANIFEST}"))
    assert objects == {f"{STAGE.address}/{manifest['attempt']}/{name}": content for name, content in FILES.items()}
    assert read_back(Store(store.url, cache=store._cache.folder)) == FILES


def make(store: Store) -> Manifest:
    """The stage, as a worker makes it: with a claim and a checkpoint."""
    with claimed(store, STAGE.address, "a test", lambda: None):
        Checkpoint(store, STAGE.address).save(Path(__file__))
        return publish(store)


@pytest.mark.parametrize("answer", TRANSIENT.values(), ids=TRANSIENT)
def test_a_fault_of_every_fifth_request_changes_nothing(s3: S3, bucket: Store, answer: faults.Answer) -> None:
    with s3.meeting(faults.every(5, answer)):
        manifest = make(bucket)
        assert bucket.manifest(STAGE.address) == manifest
    check_published_once(s3, bucket)


def test_a_slow_bucket_is_only_slow(s3: S3, bucket: Store) -> None:
    with s3.meeting(faults.always(faults.late(0.05))):
        make(bucket)
    check_published_once(s3, bucket)


@pytest.mark.parametrize("ending", [BLOCKS, MANIFEST])
def test_a_connection_that_stays_lost_amid_an_upload_leaves_no_torn_object(
    s3: S3, impatient: Store, ending: str
) -> None:
    cut = faults.first(*[faults.cut_upload] * 20, method="PUT", ending=ending)
    with s3.meeting(cut), pytest.raises(ConnectionError, match=impatient.url) as caught:
        make(impatient)
    assert refusal(caught.value) == str(caught.value)
    assert not any(key.endswith(ending) or "claim" in key for key in s3.objects(impatient.url))
    assert (impatient.manifest(STAGE.address), impatient.has(STAGE.address)) == (None, False)
    make(impatient)
    published = [key for key in s3.objects(impatient.url) if key.endswith(MANIFEST)]
    assert len(published) == 1
    assert read_back(impatient) == FILES


def test_a_large_file_in_parts_is_whole_or_absent(
    s3: S3, impatient: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs.core

    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda *_, **__: 5 * 2**20)
    (tmp_path / "large").write_bytes(content := os.urandom(11 * 2**20))
    with s3.meeting(faults.first(faults.cut_upload, faults.lost_answer, method="PUT")):
        impatient.upload(tmp_path / "large", "large")
    assert s3.objects(impatient.url) == {"results/large": content}
    impatient.remove("large")
    with s3.meeting(faults.always(faults.cut_upload, "PUT")), pytest.raises(ConnectionError, match=impatient.url):
        impatient.upload(tmp_path / "large", "large")
    assert s3.objects(impatient.url) == {}
    name = impatient.root.partition("/")[0]
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=name)  # parts that were sent cost nothing further


def test_a_download_that_breaks_off_is_whole_or_an_error_and_is_never_kept(s3: S3, impatient: Store) -> None:
    publish(impatient)
    with s3.meeting(faults.first(faults.cut_download, method="GET", ending=BLOCKS)):
        assert impatient.fetch(STAGE.address, BLOCKS).read_bytes() == FILES[BLOCKS]
    cache = impatient._cache.folder
    for path in [path for path in cache.rglob("*") if path.is_file()]:
        path.unlink()
    broken: Fault = lambda _, request: faults.cut_download if request["PATH_INFO"].endswith(BLOCKS) else None  # noqa: E731
    with s3.meeting(broken), pytest.raises(ConnectionError, match=impatient.url):
        impatient.fetch(STAGE.address, BLOCKS)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_of_two_that_both_saw_no_object_the_first_writes_it(
    s3: S3, bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "exists", lambda *_: False)
    assert (bucket.create(b"1", "a"), bucket.create(b"2", "a"), bucket.read("a")) == (True, False, b"1")
    with s3.meeting(faults.first(faults.lost_answer, method="PUT")):
        assert bucket.create(b"3", "b"), "the answer was lost, and this very content is there"
    conflict = faults.error("409 Conflict", "ConditionalRequestConflict", "A conflicting conditional operation")
    with s3.meeting(faults.always(conflict, "PUT")):
        assert not bucket.create(b"4", "c")
    with s3.meeting(faults.always(faults.DENIED, "PUT")), pytest.raises(ConnectionError, match="Access Denied"):
        bucket.create(b"5", "d")


def test_a_claim_is_given_back_or_left_without_an_error_when_the_bucket_is_away(s3: S3, impatient: Store) -> None:
    mine = claim_on(impatient, STAGE.address)
    assert mine.take()
    with s3.meeting(faults.always(faults.DENIED)):
        mine.give_back()
    holder = mine.holder()
    assert holder is not None and holder.gone
    with claimed(impatient, STAGE.address, "a test", lambda: None):
        pass
    assert s3.objects(impatient.url) == {}


def test_the_empty_objects_of_a_console_are_no_names(s3: S3, bucket: Store) -> None:
    name = bucket.root.partition("/")[0]
    for key in ("results/", "results/sweeps/", "results/sweeps/one/"):
        s3.client.put_object(Bucket=name, Key=key, Body=b"")
    assert (bucket.names(), bucket.names("sweeps"), bucket.names("sweeps", "one")) == (["sweeps"], ["one"], [])


def test_a_bucket_that_is_removed_amid_a_run_is_an_error_and_no_empty_storage(s3: S3, bucket: Store) -> None:
    publish(bucket)
    gone = Objects(bucket.url.replace("deftx-", "gone-"))
    for ask in (gone.read, gone.names, gone.size):
        with pytest.raises(ConnectionError, match=rf"{gone.url}: The specified bucket does not exist"):
            ask("sweeps", "one")
    with pytest.raises(ConnectionError, match="does not exist"):
        gone.write(b"", "x")


def test_a_program_error_and_one_of_this_machines_disk_stay_what_they_are(bucket: Store, tmp_path: Path) -> None:
    with pytest.raises(TypeError), bucket.asked():
        raise TypeError("a bug")
    with pytest.raises(NotADirectoryError), bucket.asked():
        (tmp_path / "file").write_text("")
        (tmp_path / "file" / "x").read_bytes()
    with pytest.raises(StoreError), bucket.asked():
        raise StoreError("a message of its own")
